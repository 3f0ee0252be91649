defmodule Kith.Test.Vaults do
  @moduledoc false
  # Vaults with a module of their own, so that every test runs beside the others.

  @doc "A module that says `use Kith.Vault`, with this configuration."
  def vault!(config) do
    name = Module.concat(__MODULE__, "V#{System.unique_integer([:positive])}")

    Module.create(
      name,
      quote do
        use Kith.Vault, otp_app: :kith
      end,
      Macro.Env.location(__ENV__)
    )

    configure!(name, config)
    name
  end

  @doc "Gives a vault another configuration. It is read at the next call."
  def configure!(name, config) do
    Application.put_env(:kith, name, config)
    Kith.Vault.close(name)

    ExUnit.Callbacks.on_exit({__MODULE__, name}, fn ->
      Application.delete_env(:kith, name)
      Kith.Vault.close(name)
    end)
  end

  @doc "The bytes 0 to 31, which is the key of the vectors."
  def key, do: :binary.list_to_bin(Enum.to_list(0..31))

  @doc "A cipher of Kith's own."
  def kith(id, key \\ key()), do: {Kith.Vault, id: id, key: key}

  @doc "A cipher of Cloak, whose modules are not here."
  def gcm(options \\ []) do
    {Cloak.Ciphers.AES.GCM,
     Keyword.merge([tag: "AES.GCM.V1", key: key(), iv_length: 12], options)}
  end

  def ctr(options \\ []),
    do: {Cloak.Ciphers.AES.CTR, Keyword.merge([tag: "AES.CTR.V1", key: key()], options)}

  @doc "Fields that Cloak wrote; see `test/kith/vault_test.exs`."
  def hex(text), do: text |> String.replace(~r/\s/, "") |> Base.decode16!(case: :lower)
end
