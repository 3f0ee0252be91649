defmodule Mix.Tasks.Kith.Restore do
  @shortdoc "Restores a user from a backup, or tries whether it opens"

  @moduledoc """
  Restores a user from a backup that `mix kith.backup` or `Kith.Backup.export/4` has written.

      $ mix kith.restore MyApp.Kith anna anna.kith
      $ mix kith.restore MyApp.Kith anna anna.kith --passphrase --verify

  Without a switch for it, it asks for the words of the recovery key.

    * `--words`, `--words-env NAME`, `--words-file PATH` - the words of the recovery key;
    * `--passphrase`, `--passphrase-env NAME`, `--passphrase-file PATH` - the passphrase;
    * `--verify` - reads all of the backup, says what is in it, and writes nothing;
    * `--replace` - although the user has keys here, which are lost;
    * `--no-history` - without the message archive.

  A secret is asked for, or comes out of the environment or of a file that only its owner may read, and is never an argument. Stop the
  application on the embedded database first.
  """

  use Mix.Task

  alias Kith.Backup

  @impl true
  def run(arguments) do
    switches =
      [history: :boolean, replace: :boolean, verify: :boolean] ++ Mix.Kith.secret_switches()

    {options, rest, wrong} = OptionParser.parse(arguments, strict: switches)

    with [instance, user, path] <- rest, [] <- wrong do
      Mix.Task.run("app.config")
      name = Mix.Kith.instance!(instance)
      if not File.regular?(path), do: Mix.raise("there is no backup #{path}")
      secret = Mix.Kith.secret!(options, :words)
      Mix.Kith.start!(name, create: true)
      backup = File.stream!(path)

      if options[:verify],
        do: verify(name, backup, secret),
        else: restore(name, user, backup, secret, Keyword.take(options, [:history, :replace]))
    else
      _other ->
        Mix.raise(
          "expected the module of an instance, a user and a path, see mix help kith.restore"
        )
    end
  end

  defp verify(name, backup, secret) do
    case Backup.verify(name, backup, secret) do
      {:ok, %{user: user, exported_at: at, records: records}} ->
        made = DateTime.from_unix!(at, :millisecond)
        Mix.shell().info("A whole backup of #{user}, made #{made}, with #{records} records.")

      {:error, error} ->
        Mix.raise(Exception.message(error))
    end
  end

  defp restore(name, user, backup, secret, options) do
    case Backup.restore(name, user, backup, secret, options) do
      {:ok, restored} ->
        Kith.Maintenance.await(name)

        Mix.shell().info(
          "Restored #{user}: devices #{Enum.join(restored.devices, ", ")}, #{restored.sessions} sessions that start anew, " <>
            "#{restored.messages} messages."
        )

      {:error, error} ->
        Mix.raise(Exception.message(error))
    end
  end
end
