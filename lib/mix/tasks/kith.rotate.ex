defmodule Mix.Tasks.Kith.Rotate do
  @shortdoc "Wraps the data keys of an instance under its current key"

  @moduledoc """
  Wraps the data keys of an instance under its current key-encryption key, and replaces those of another `:cipher` than is configured, and old ones.

      $ mix kith.rotate MyApp.Kith --dry-run
      $ mix kith.rotate MyApp.Kith --verify
      $ mix kith.rotate MyApp.Kith --older-than 365

  Put the new key into `:keys` as `:current` first, and the one of before into `:retired`: see the guide "Keys at rest". What is interrupted is
  started again and goes on; traffic goes on meanwhile. In a release, where there is no Mix, call `Kith.Vault.rotate/2`.

    * `--dry-run` - writes nothing and says what would be done
    * `--older-than DAYS` - also gives accounts and threads another data key whose key is older than that
    * `--verify` - opens everything afterwards

  It reads the configuration of the application and starts the instance, and with `:repo` the repository, but nothing
  else of the application. Ends with status 1 when something was refused or, with `--verify`, did not open or
  is not under the current key or of another cipher: another node may have wrapped it meanwhile.
  """

  use Mix.Task

  @switches [dry_run: :boolean, older_than: :integer, verify: :boolean]

  @impl true
  def run(arguments) do
    {options, rest, wrong} = OptionParser.parse(arguments, strict: @switches)

    with [instance] <- rest,
         [] <- wrong,
         days when days in 1..365//1 or days == nil <- options[:older_than] do
      Mix.Task.run("app.config")
      name = Mix.Kith.instance!(instance)
      rotate(name, options)
    else
      _ ->
        Mix.raise(
          "expected the module of an instance, and --older-than with 1 to 365 days, see mix help kith.rotate"
        )
    end
  end

  defp rotate(name, options) do
    older_than = if days = options[:older_than], do: [older_than: days * 86_400], else: []
    given = older_than ++ Keyword.take(options, [:dry_run, :verify]) ++ [progress: &progress/1]

    case Kith.Vault.rotate(name, given) do
      {:ok, counts} -> report(counts, options[:dry_run] || false)
      {:error, error} -> Mix.raise(Exception.message(error))
    end
  end

  defp progress(counts),
    do: Mix.shell().info(words(counts, [:rewrapped, :current, :rotated]) <> "…")

  defp report(counts, dry_run) do
    would = if dry_run, do: "Nothing was written. There would be: ", else: "Done: "
    Mix.shell().info(would <> words(counts, [:rewrapped, :current, :rotated, :refused]))

    for {key, count} <- counts.remaining,
        do: Mix.shell().error("  #{count} data keys do not open. They say they are under #{key}.")

    if found = counts[:verified],
      do: Mix.shell().info("Verified: " <> words(found, [:opened, :damaged, :locked, :outdated]))

    verified = counts[:verified] || %{damaged: 0, outdated: 0}

    if counts.refused > 0 or verified.damaged > 0 or verified.outdated > 0,
      do: exit({:shutdown, 1})
  end

  defp words(counts, keys), do: Enum.map_join(keys, ", ", &"#{counts[&1]} #{&1}")
end
