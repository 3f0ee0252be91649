# What Kith.Vault costs beside one pass of AES-256-GCM by :crypto, which is OpenSSL's, over the same bytes.
#
#     MIX_ENV=prod mix run --no-start bench/vault.exs
#
# Both are called alternately in one run, so that what disturbs one disturbs the other, and medians are compared. The
# target is 1.5 for a megabyte, in every format.

defmodule Bench.Vault do
  use Kith.Vault, otp_app: :kith
  def init(_), do: {:ok, Application.fetch_env!(:kith, Bench)}
end

key = :crypto.strong_rand_bytes(32)
iv = :crypto.strong_rand_bytes(12)

Application.put_env(:kith, Bench,
  current: :kith,
  ciphers: [
    kith: {Kith.Vault, id: "2026-11", key: key},
    gcm12: {Cloak.Ciphers.AES.GCM, tag: "AES.GCM.V1", key: key, iv_length: 12},
    gcm16: {Cloak.Ciphers.AES.GCM, tag: "AES.GCM.V2", key: key},
    ctr: {Cloak.Ciphers.AES.CTR, tag: "AES.CTR.V1", key: key, unsafe_write: true}
  ]
)

# Nanoseconds of each function, a few calls at a time, in turns.
measure = fn functions, rounds, calls ->
  times =
    for _ <- 1..rounds do
      for fun <- functions do
        started = System.monotonic_time(:nanosecond)
        for _ <- 1..calls, do: fun.()
        (System.monotonic_time(:nanosecond) - started) / calls
      end
    end

  for column <- Enum.zip_with(times, & &1), do: column |> Enum.sort() |> Enum.at(div(rounds, 2))
end

IO.puts(
  "| bytes | format | encrypt, µs | decrypt, µs | :crypto, µs | encrypt, ratio | decrypt, ratio |"
)

IO.puts("| --- | --- | --- | --- | --- | --- | --- |")

for {size, rounds, calls} <- [
      {64, 400, 200},
      {1_024, 400, 200},
      {65_536, 300, 10},
      {1_048_576, 300, 1}
    ],
    label <- [:kith, :gcm12, :gcm16, :ctr] do
  plaintext = :crypto.strong_rand_bytes(size)
  field = Bench.Vault.encrypt!(plaintext, label)

  functions = [
    fn -> Bench.Vault.encrypt(plaintext, label) end,
    fn -> Bench.Vault.decrypt(field) end,
    fn -> :crypto.crypto_one_time_aead(:aes_256_gcm, key, iv, plaintext, "AES256GCM", true) end
  ]

  measure.(functions, div(rounds, 10), calls)
  [encrypt, decrypt, crypto] = measure.(functions, rounds, calls)

  [a, b, c] =
    for ns <- [encrypt, decrypt, crypto], do: :erlang.float_to_binary(ns / 1_000, decimals: 2)

  [d, e] = for ns <- [encrypt, decrypt], do: :erlang.float_to_binary(ns / crypto, decimals: 2)
  IO.puts("| #{size} | #{label} | #{a} | #{b} | #{c} | #{d} | #{e} |")
end
