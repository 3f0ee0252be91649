defmodule Kith.Supervisor do
  @moduledoc false
  # One instance: its database, the keeper of its name, the process that looks after keys.
  use Supervisor

  alias Kith.{Instance, KeySource, Maintenance, Native, Options}
  alias Kith.Store.Repo

  def start_link(given) do
    options = Options.new!(given)
    KeySource.check_environment!(options.keys)
    vault = open_vault!(options)
    KeySource.announce(options.name, options.keys, vault)
    kms = KeySource.kms(options.keys)
    # The keys themselves are in the vault now.
    options = %{options | keys: :in_vault, database: place(options.database)}

    Supervisor.start_link(__MODULE__, {options, vault, kms},
      name: {:via, Registry, {Kith.Registry, {__MODULE__, options.name}}}
    )
  end

  defp place(:memory), do: :memory
  defp place(path), do: Path.expand(path)

  @impl true
  def init({%Options{repo: nil} = options, vault, kms}) do
    database = {:via, Registry, {Kith.Registry, {Kith.SQLite, options.name}}}

    # rest_for_one: a keeper must not offer the handle of a database that was started anew.
    Supervisor.init(
      [
        {Kith.SQLite, path: options.database, synchronous: options.synchronous, name: database},
        {Instance.Keeper, {options, {vault, kms}, Kith.SQLite.handle(database)}},
        {Maintenance, options.name}
      ],
      strategy: :rest_for_one
    )
  end

  def init({options, vault, kms}) do
    Supervisor.init(
      [
        {Instance.Keeper, {options, {vault, kms}, Repo.new(options.repo, options.prefix)}},
        {Maintenance, options.name}
      ],
      strategy: :rest_for_one
    )
  end

  defp open_vault!(options) do
    {current, sources} = Options.key_sources(options)

    limits = Options.key_limits(options)

    case Native.vault_open(current, sources, limits, options.cipher) do
      {:ok, vault} ->
        vault

      {:error, {:invalid, message}} ->
        raise ArgumentError,
              "the keys in :keys do not open (mix kith.gen.key makes one): " <> message

      {:error, reason} ->
        raise ArgumentError, "the keys in :keys do not open: #{inspect(reason)}"
    end
  end
end
