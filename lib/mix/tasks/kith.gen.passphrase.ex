defmodule Mix.Tasks.Kith.Gen.Passphrase do
  @shortdoc "Makes the parameters of a passphrase for Kith"

  @moduledoc """
  Makes the parameters that belong to a passphrase, and prints the lines that use them.

      $ mix kith.gen.passphrase --file /etc/my_app/passphrase
      $ mix kith.gen.passphrase --env KITH_PASSPHRASE

  The passphrase is in the file, which only its owner may read, or in the variable; it has at least 16 bytes, and white space
  around it does not count. `--memory` in KiB (default 262144) and `--passes` (default 3) are what Argon2id costs at each start.
  """

  use Mix.Task

  alias Kith.Native

  @switches [file: :string, env: :string, memory: :integer, passes: :integer]

  @impl true
  def run(arguments) do
    {options, rest, wrong} = OptionParser.parse(arguments, strict: @switches)

    if rest != [] or wrong != [] or options[:file] == nil == (options[:env] == nil),
      do: Mix.raise("expected --file path or --env name, see mix help kith.gen.passphrase")

    secret =
      if options[:file],
        do: {:file, Path.expand(options[:file])},
        else: {:env, options[:env]}

    case Native.passphrase_create(secret, {options[:memory] || 262_144, options[:passes] || 3, 4}) do
      {:ok, parameters} ->
        id = Calendar.strftime(Date.utc_today(), "%Y-%m")

        Mix.shell().info("""
        Name it in config/runtime.exs. The parameters are not secret, and without them the passphrase opens nothing:

            keys: [current: {"#{id}", {:passphrase, #{inspect(secret)},
              #{inspect(parameters)}}}]
        """)

      {:error, {:invalid, sentence}} ->
        Mix.raise(sentence)

      {:error, reason} ->
        Mix.raise("the parameters cannot be made: #{reason}")
    end
  end
end
