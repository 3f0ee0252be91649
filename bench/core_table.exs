defmodule Bench.CoreTable do
  # Reads the estimates of `cargo bench --bench core` and puts each operation beside the sum of the
  # primitive calls it cannot do without.

  @encrypt [hmac_1: 2, hkdf_80: 1, cbc_encrypt: 1, hmac_body: 1]
  @decrypt [hmac_1: 2, hkdf_80: 1, cbc_decrypt: 1, hmac_body: 1]
  @new_chain [x25519: 2, base: 1, hkdf_64: 2]

  @operations [
    {"keys/identity", "Identity key", [base: 1]},
    {"keys/prekey", "One-time prekey", [base: 1]},
    {"keys/signed_prekey", "Signed prekey", [base: 1, sign: 1]},
    {"handshake/initiate", "Session from a bundle", [verify: 1, base: 2, x25519: 5, hkdf_64: 2]},
    {"handshake/encrypt_first", "Encrypt the first message", @encrypt},
    {"handshake/decrypt_first", "Decrypt the first message",
     [[x25519: 4, hkdf_64: 1], @new_chain, @decrypt]},
    {"messages/encrypt", "Encrypt, same chain", @encrypt},
    {"messages/decrypt", "Decrypt, same chain", @decrypt},
    {"messages/decrypt_new_chain", "Decrypt, new chain", [@new_chain, @decrypt]},
    {"messages/ping_pong", "One message each way, per message", [@encrypt, @new_chain, @decrypt]},
    {"messages/fan_out_5", "Fan-out to 5", List.duplicate(@encrypt, 5)},
    {"messages/fan_out_29", "Fan-out to 29", List.duplicate(@encrypt, 29)},
    {"skipped/jump_1000", "Decrypt after 1,000 missing", [[hmac_1: 2_000], @decrypt]},
    {"skipped/decrypt_one_of_1000", "Decrypt one of 1,000 missing",
     [hkdf_80: 1, cbc_decrypt: 1, hmac_body: 1]},
    {"skipped/encrypt_with_1000", "Encrypt while 1,000 are missing", @encrypt},
    {"state/to_bytes", "Session to bytes", nil},
    {"state/from_bytes", "Session from bytes", nil}
  ]

  @primitives [
    x25519: "X25519",
    base: "Multiplication of the base point",
    sign: "XEdDSA signature",
    verify: "XEdDSA verification",
    hmac_1: "HMAC-SHA-256 of 1 byte",
    hmac_body: "HMAC-SHA-256 of a message",
    hkdf_80: "HKDF-SHA-256, 80 bytes",
    hkdf_64: "HKDF-SHA-256, 64 bytes",
    cbc_encrypt: "AES-256-CBC encryption",
    cbc_decrypt: "AES-256-CBC decryption"
  ]

  @doc "Rows `{name, median, sum of primitives | nil}` and rows `{primitive, median}`, in nanoseconds."
  def read(directory) do
    primitives =
      for {key, name} <- @primitives, do: {key, name, median(directory, "primitives/#{key}")}

    costs = Map.new(primitives, fn {key, _, median} -> {key, median} end)

    operations =
      for {id, name, calls} <- @operations do
        {name, median(directory, id), calls && sum(calls, costs)}
      end

    %{
      operations: operations,
      primitives: for({_, name, median} <- primitives, do: {name, median})
    }
  end

  @doc "The sum of primitives of one encrypted message, in nanoseconds."
  def per_message(%{operations: operations}) do
    {_, _, sum} = List.keyfind(operations, "Encrypt, same chain", 0)
    sum
  end

  @doc "The same of one session from a bundle and its first message."
  def per_session(%{operations: operations}) do
    {_, _, session} = List.keyfind(operations, "Session from a bundle", 0)
    {_, _, message} = List.keyfind(operations, "Encrypt the first message", 0)
    session + message
  end

  defp sum(calls, costs) do
    calls |> List.flatten() |> Enum.map(fn {key, count} -> costs[key] * count end) |> Enum.sum()
  end

  # The only number of the file that is wanted; a parser of JSON would be a dependency.
  defp median(directory, id) do
    path = Path.join([directory, id, "new", "estimates.json"])

    with {:ok, json} <- File.read(path),
         [_, number] <-
           Regex.run(
             ~r/"median":\{"confidence_interval":\{[^}]*\},"point_estimate":([\d.e+-]+)/,
             json
           ) do
      number |> Float.parse() |> elem(0)
    else
      _ -> raise "#{path} has no median; run `cargo bench --package kith_protocol --bench core`"
    end
  end
end
