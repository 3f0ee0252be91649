defmodule Kith.Store.WrappedKey do
  @moduledoc false
  # The columns key_id, wrapped_dek, kek_id and kek_version of signal_accounts and signal_threads, and how a wrapped data key begins.

  alias Kith.Native

  @prefixes %{
    aes_256_gcm: [<<1, 0x10>>, <<1, 0x13>>],
    chacha20_poly1305: [<<1, 0x18>>, <<1, 0x1B>>]
  }

  @doc "How data keys begin that are under no password and do not seal with this cipher. Nothing of it is authenticated."
  @spec prefixes_of_others(atom) :: [binary]
  def prefixes_of_others(cipher),
    do: for({other, prefixes} <- @prefixes, other != cipher, prefix <- prefixes, do: prefix)

  @doc "Whether a data key is one of those."
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
