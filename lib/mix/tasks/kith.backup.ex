defmodule Mix.Tasks.Kith.Backup do
  @shortdoc "Writes a backup of one user's account"

  @moduledoc """
  Writes a backup of one user's account, see `Kith.Backup`.

      $ mix kith.backup MyApp.Kith anna anna.kith
      $ mix kith.backup MyApp.Kith anna anna.kith --passphrase-file /run/secrets/passphrase

  Without a switch it makes a recovery key, and prints its words once, when the backup is written. The file is new, and only its owner may
  read it.

    * `--words`, `--words-env NAME`, `--words-file PATH` - the words of a recovery key there is already;
    * `--passphrase`, `--passphrase-env NAME`, `--passphrase-file PATH` - a passphrase;
    * `--no-history` - without the message archive.

  A secret is asked for, or comes out of the environment or of a file that only its owner may read. It is never an argument, which
  other users of the machine can see.

  It reads the configuration of the application and starts the instance, and with `:repo` the repository, but nothing else of the application.
  """

  use Mix.Task

  alias Kith.Backup
  alias Kith.Backup.RecoveryKey

  @impl true
  def run(arguments) do
    switches = [history: :boolean] ++ Mix.Kith.secret_switches()
    {options, rest, wrong} = OptionParser.parse(arguments, strict: switches)

    with [instance, user, path] <- rest, [] <- wrong do
      Mix.Task.run("app.config")
      name = Mix.Kith.instance!(instance)
      if File.exists?(path), do: Mix.raise("#{path} exists: a backup is never overwritten")
      secret = Mix.Kith.secret!(options, &generate/0)
      Mix.Kith.start!(name)
      write(name, user, path, secret, Keyword.take(options, [:history]))
      if made?(options), do: show(secret)
    else
      _other ->
        Mix.raise(
          "expected the module of an instance, a user and a path, see mix help kith.backup"
        )
    end
  end

  defp made?(options), do: Enum.all?(Mix.Kith.secret_switches(), fn {key, _} -> !options[key] end)

  defp generate do
    {:ok, key} = RecoveryKey.generate()
    key
  end

  defp write(name, user, path, secret, options) do
    with {:ok, stream} <- Backup.export(name, user, secret, options),
         {:ok, file} <- File.open(path, [:write, :exclusive]),
         :ok <- File.chmod(path, 0o600) do
      try do
        Enum.each(stream, &IO.binwrite(file, &1))
        :ok = :file.sync(file)
      rescue
        error in Kith.Error ->
          File.rm(path)
          Mix.raise(Exception.message(error))
      after
        File.close(file)
      end

      Mix.shell().info("Wrote a backup of #{user} to #{path}.")
    else
      {:error, %Kith.Error{} = error} -> Mix.raise(Exception.message(error))
      {:error, reason} -> Mix.raise("#{path} cannot be written: #{:file.format_error(reason)}")
    end
  end

  defp show(key) do
    {:ok, words} = RecoveryKey.words(key)

    Mix.shell().info("""

    It opens with these words, which are kept nowhere else:

        #{words}
    """)
  end
end
