defmodule Mix.Kith do
  @moduledoc false
  # What the tasks that work on an instance have in common.

  import Bitwise

  alias Kith.Backup.RecoveryKey

  @doc "The module of an instance, by its name."
  def instance!(text) do
    module = Module.concat([text])

    if Code.ensure_loaded?(module) and function_exported?(module, :start_link, 1),
      do: module,
      else: Mix.raise("#{text} is no module that says `use Kith`")
  end

  @doc """
  Starts an instance, and with `:repo` the repository, but nothing else of the application.

  Without `create: true` an embedded database has to be there.
  """
  def start!(module, options \\ []) do
    case Kith.Standalone.start(module, options) do
      {:ok, _started} -> :ok
      {:error, message} -> Mix.raise(message)
    end
  end

  @doc "The switches `secret!/2` reads."
  def secret_switches do
    [
      passphrase: :boolean,
      passphrase_env: :string,
      passphrase_file: :string,
      words: :boolean,
      words_env: :string,
      words_file: :string
    ]
  end

  @doc """
  The secret of a backup: out of a prompt, the environment or a file, and never out of the arguments, which every user of the
  machine can see.
  """
  def secret!(options, default) do
    given = for {key, _} <- secret_switches(), options[key], do: key

    case {given, default} do
      {[], default} when is_function(default, 0) -> default.()
      {[], default} -> secret(default, options)
      {[key], _} -> secret(key, options)
      _several -> Mix.raise("expected one of the switches that name a secret")
    end
  end

  defp secret(:passphrase, _), do: {:passphrase, ask("Passphrase (shown as it is typed):")}
  defp secret(:passphrase_env, options), do: {:passphrase, env!(options[:passphrase_env])}
  defp secret(:passphrase_file, options), do: {:passphrase, file!(options[:passphrase_file])}
  defp secret(:words, _), do: key!(ask("Words of the recovery key (shown as they are typed):"))
  defp secret(:words_env, options), do: key!(env!(options[:words_env]))
  defp secret(:words_file, options), do: key!(file!(options[:words_file]))

  defp ask(question), do: question |> Mix.shell().prompt() |> String.trim_trailing("\n")

  defp env!(name) do
    case System.fetch_env(name) do
      {:ok, secret} -> secret
      :error -> Mix.raise("the environment has no #{name}")
    end
  end

  # As strict as the native library is with keys.
  defp file!(path) do
    with {:ok, %{type: :regular, mode: mode}} when band(mode, 0o077) == 0 <- File.stat(path),
         {:ok, secret} <- File.read(path) do
      secret |> String.trim_trailing("\n") |> String.trim_trailing("\r")
    else
      {:ok, _stat} ->
        Mix.raise("#{path} has to be a file that only its owner may read (mode 0600)")

      {:error, reason} ->
        Mix.raise("#{path} cannot be read: #{:file.format_error(reason)}")
    end
  end

  defp key!(words) do
    case RecoveryKey.parse(words) do
      {:ok, key} -> key
      {:error, error} -> Mix.raise(Exception.message(error))
    end
  end
end
