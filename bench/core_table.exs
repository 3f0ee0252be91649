defmodule Bench.CoreTable do
  # Reads the estimates of `cargo bench --bench core` and puts each operation beside the sum of the
  # primitive calls it cannot do without.

  # Version 4 has a step of the post-quantum chain, an HKDF of 64 bytes, in every message.
  @encrypt_v3 [hmac_1: 2, hkdf_80: 1, cbc_encrypt: 1, hmac_body: 1]
  @decrypt_v3 [hmac_1: 2, hkdf_80: 1, cbc_decrypt: 1, hmac_body: 1]
  @encrypt [@encrypt_v3, hkdf_64: 1]
  @decrypt [@decrypt_v3, hkdf_64: 1]
  @new_chain [x25519: 2, base: 1, hkdf_64: 2]
  # PQXDH's HKDF, and what the post-quantum ratchet starts from: its authenticator and its chain.
  @handshake [hkdf_96: 2, hkdf_64: 1]

  @operations [
    {"keys/identity", "Identity key", [base: 1]},
    {"keys/prekey", "One-time prekey", [base: 1]},
    {"keys/signed_prekey", "Signed prekey", [base: 1, sign: 1]},
    {"keys/kyber_prekey", "Kyber prekey", [kyber_generate: 1, sign_kyber: 1]},
    {"keys/kyber_from_seed", "Kyber prekey from its seed", [kyber_generate: 1]},
    {"handshake/initiate", "Session from a bundle",
     [
       [verify: 1, verify_kyber: 1, kyber_encapsulate: 1, base: 2, x25519: 5, hkdf_64: 1],
       @handshake
     ]},
    {"handshake/encrypt_first", "Encrypt the first message",
     [@encrypt, mlkem_generate: 1, hmac_body: 1]},
    {"handshake/decrypt_first", "Decrypt the first message",
     [[x25519: 4, kyber_decapsulate: 1], @handshake, @new_chain, @decrypt]},
    {"messages/encrypt", "Encrypt, same chain", @encrypt},
    {"messages/encrypt_parity", "Encrypt, same chain, with a chunk of parity", @encrypt},
    {"messages/decrypt", "Decrypt, same chain", @decrypt},
    {"messages/encrypt_v3", "Encrypt, same chain, version 3", @encrypt_v3},
    {"messages/decrypt_v3", "Decrypt, same chain, version 3", @decrypt_v3},
    {"messages/decrypt_new_chain", "Decrypt, new chain", [@new_chain, @decrypt]},
    {"messages/ping_pong", "One message each way, per message", [@encrypt, @new_chain, @decrypt]},
    {"messages/fan_out_5", "Fan-out to 5", List.duplicate(@encrypt, 5)},
    {"messages/fan_out_29", "Fan-out to 29", List.duplicate(@encrypt, 29)},
    {"skipped/jump_1000", "Decrypt after 1,000 missing",
     [[hmac_1: 2_000, hkdf_64: 1_000], @decrypt]},
    {"skipped/decrypt_one_of_1000", "Decrypt one of 1,000 missing",
     [hkdf_80: 1, cbc_decrypt: 1, hmac_body: 1]},
    {"skipped/encrypt_with_1000", "Encrypt while 1,000 are missing", @encrypt},
    {"skipped/decrypt_with_1000", "Decrypt while 1,000 are missing", @decrypt},
    {"state/state_bytes", "State to bytes", nil},
    {"state/from_parts", "Session from state and braid", nil},
    {"state/to_bytes", "Whole session to bytes", nil},
    {"state/from_bytes", "Whole session from bytes", nil}
  ]

  @primitives [
    x25519: "X25519",
    base: "Multiplication of the base point",
    sign: "XEdDSA signature",
    verify: "XEdDSA verification",
    sign_kyber: "XEdDSA signature of a Kyber key",
    verify_kyber: "XEdDSA verification of a Kyber key",
    kyber_generate: "Kyber-1024 key pair",
    kyber_encapsulate: "Kyber-1024 encapsulation",
    kyber_decapsulate: "Kyber-1024 decapsulation",
    mlkem_generate: "ML-KEM-768 key pair",
    hmac_1: "HMAC-SHA-256 of 1 byte",
    hmac_body: "HMAC-SHA-256 of a message",
    hkdf_80: "HKDF-SHA-256, 80 bytes",
    hkdf_64: "HKDF-SHA-256, 64 bytes",
    hkdf_96: "HKDF-SHA-256, 96 bytes",
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
