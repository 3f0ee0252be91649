defmodule Mix.Tasks.Kith.Doctor do
  @shortdoc "Looks how an instance of Kith is, or why a message does not open"

  @moduledoc """
  Looks how an instance of Kith is, or why a message does not open.

      $ mix kith.doctor MyApp.Kith
      $ mix kith.doctor MyApp.Kith --to ben --envelope message.bin
      $ mix kith.doctor MyApp.Kith --to ben --device 2 --envelope message.bin

  The envelope is a file with what `Kith.Envelope.to_binary/1` returned, as it is or in Base64. Neither keys nor texts are printed, and
  nothing is written but what a start writes: an embedded database gets the tables of this release and its next mark.

  It reads the configuration of the application and starts the instance, and with `:repo` the repository, but nothing
  else of the application. Ends with status 1 when something is wrong or the message does not open.
  """

  use Mix.Task

  @switches [to: :string, device: :integer, envelope: :string]

  @impl true
  def run(arguments) do
    {options, rest, wrong} = OptionParser.parse(arguments, strict: @switches)

    if wrong != [] or length(rest) != 1 or
         options[:envelope] == nil != (options[:to] == nil) or
         (options[:device] != nil and options[:to] == nil),
       do:
         Mix.raise(
           "expected the module of an instance, and --to with --envelope for a message, see mix help kith.doctor"
         )

    Mix.Task.run("app.config")
    name = Mix.Kith.instance!(hd(rest))
    Mix.Kith.start!(name)

    if options[:envelope],
      do: message(name, options),
      else: report(name, Kith.doctor(name))
  end

  defp report(_name, {:error, error}), do: Mix.raise(Exception.message(error))

  defp report(_name, {:ok, checks}) do
    for {check, condition, sentence} <- checks,
        do: Mix.shell().info("#{String.pad_trailing("#{condition}", 8)}#{check}: #{sentence}")

    if Enum.any?(checks, &match?({_, :error, _}, &1)), do: exit({:shutdown, 1})
  end

  defp message(name, options) do
    to = if options[:device], do: {options[:to], options[:device]}, else: options[:to]

    case Kith.doctor(name, to, read!(options[:envelope])) do
      {:ok, found} ->
        Mix.shell().info(found.explanation)
        Mix.shell().info("\n" <> inspect(found.facts, pretty: true, width: 100))
        if not found.opens, do: exit({:shutdown, 1})

      {:error, error} ->
        Mix.raise(Exception.message(error))
    end
  end

  defp read!(path) do
    bytes =
      case File.read(path) do
        {:ok, bytes} -> bytes
        {:error, reason} -> Mix.raise("#{path} cannot be read: #{:file.format_error(reason)}")
      end

    case Base.decode64(String.trim(bytes)) do
      {:ok, decoded} -> decoded
      :error -> bytes
    end
  end
end
