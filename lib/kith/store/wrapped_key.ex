defmodule Kith.Store.WrappedKey do
  @moduledoc false
  # The columns key_id, wrapped_dek, kek_id and kek_version of signal_accounts and signal_threads, and how a wrapped data key begins.

  alias Kith.Native

  # Version and algorithm, see docs/state-format.md. Nothing of it is authenticated.
  @local %{aes_256_gcm: <<1, 0x10>>, chacha20_poly1305: <<1, 0x18>>}
  @served %{aes_256_gcm: <<1, 0x13>>, chacha20_poly1305: <<1, 0x1B>>}
  @served_prefixes Map.values(@served)
  @locked [<<1, 0x11>>, <<1, 0x14>>, <<1, 0x19>>, <<1, 0x1C>>]

  @doc "Whether a data key is locked under a password: of either cipher, with a key service or without."
  defguard is_locked(data_key)
           when is_binary(data_key) and binary_part(data_key, 0, 2) in @locked

  @doc "Whether a key service has a part in it, and no password."
  defguard is_served(wrapped)
           when is_binary(wrapped) and binary_part(wrapped, 0, 2) in @served_prefixes

  # How data keys begin that are under no password and do not seal with this cipher.
  defp prefixes_of_others(cipher) do
    for prefixes <- [@local, @served], {other, prefix} <- prefixes, other != cipher, do: prefix
  end

  @doc "Whether a data key is under no password, and does not seal with this cipher."
  @spec of_another?(term, atom) :: boolean
  def of_another?(data_key, cipher),
    do: is_binary(data_key) and String.starts_with?(data_key, prefixes_of_others(cipher))

  @doc "As a condition on the column `data_key`, with the numbers of its two parameters, and these."
  @spec other_cipher(atom, {pos_integer, pos_integer}) :: {String.t(), [term]}
  def other_cipher(cipher, {first, second}) do
    params = for prefix <- prefixes_of_others(cipher), do: {:blob, prefix}
    {"substr(data_key, 1, 2) IN ($#{first}, $#{second})", params}
  end

  @doc "What they have beside a wrapped data key, as parameters in this order."
  @spec columns(binary) :: [term]
  def columns(data_key) do
    case Native.wrapped_key_inspect(data_key) do
      {:ok, %{wrapped_dek: nil} = key} -> [key.key_id, nil, key.kek_id, key.kek_version]
      {:ok, key} -> [key.key_id, {:blob, key.wrapped_dek}, key.kek_id, key.kek_version]
      {:error, _} -> [nil, nil, nil, nil]
    end
  end
end
