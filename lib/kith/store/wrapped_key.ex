defmodule Kith.Store.WrappedKey do
  @moduledoc false
  # The columns key_id, wrapped_dek, kek_id and kek_version of signal_accounts and signal_threads.

  alias Kith.Native

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
