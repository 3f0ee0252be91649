defmodule Mix.Tasks.Kith.Gen.Key do
  @shortdoc "Makes a key-encryption key for Kith"

  @moduledoc """
  Makes a key-encryption key: 32 random bytes in Base64.

      $ mix kith.gen.key
      $ mix kith.gen.key --file /etc/my_app/kith.key

  Without `--file` it is printed with the lines that use it. With it, the key is written to a new file that only
  its owner may read, and not printed. An existing file is never overwritten: what it has wrapped would
  be lost.
  """

  use Mix.Task

  @impl true
  def run(arguments) do
    {options, rest, wrong} = OptionParser.parse(arguments, strict: [file: :string])

    if rest != [] or wrong != [],
      do: Mix.raise("expected no argument or --file path, see mix help kith.gen.key")

    key = Base.encode64(:crypto.strong_rand_bytes(32))
    id = Calendar.strftime(Date.utc_today(), "%Y-%m")

    case options[:file] do
      nil ->
        Mix.shell().info("""
        #{key}

        Give it to the application in its environment, and nowhere else:

            export KITH_KEY=#{key}

        and name it in config/runtime.exs:

            keys: [current: {"#{id}", {:env, "KITH_KEY"}}]
        """)

      path ->
        write!(path, key)

        Mix.shell().info("""
        Wrote a key to #{path}. Name it in config/runtime.exs:

            keys: [current: {"#{id}", {:file, #{inspect(Path.expand(path))}}}]
        """)
    end
  end

  # The file is empty until nobody else can read it.
  defp write!(path, key) do
    with {:ok, file} <- File.open(path, [:write, :exclusive]),
         :ok <- File.chmod(path, 0o600),
         :ok <- IO.binwrite(file, key <> "\n"),
         :ok <- File.close(file) do
      :ok
    else
      {:error, :eexist} -> Mix.raise("#{path} exists: a key is never overwritten")
      {:error, reason} -> Mix.raise("#{path} cannot be written: #{:file.format_error(reason)}")
    end
  end
end
