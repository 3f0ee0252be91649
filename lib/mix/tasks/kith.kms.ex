defmodule Mix.Tasks.Kith.Kms do
  @shortdoc "Runs a key service for development"

  @moduledoc """
  Runs a key service for development, `Kith.KMS.Reference`, until it is stopped.

      $ mix kith.kms --folder kms --socket /tmp/kms.sock
      $ mix kith.kms --folder kms --port 8200
      $ mix kith.kms --folder kms --port 8443 --certificate server.pem --private-key server.key --client-ca ca.pem

  The folder gets a master key when it has none. With `--client-ca` only clients with a certificate of that authority are let in.
  """

  use Mix.Task

  alias Kith.KMS.{Reference, Server}

  @switches [
    folder: :string,
    socket: :string,
    port: :integer,
    certificate: :string,
    private_key: :string,
    client_ca: :string,
    faults: :string
  ]

  @impl true
  def run(arguments) do
    {options, rest, wrong} = OptionParser.parse(arguments, strict: @switches)

    if rest != [] or wrong != [] or options[:folder] == nil or
         options[:socket] == nil == (options[:port] == nil) or
         options[:certificate] == nil != (options[:private_key] == nil),
       do: Mix.raise("expected --folder, and --socket or --port, see mix help kith.kms")

    Mix.Task.run("loadpaths")
    serve(options)
  end

  @doc false
  def serve(options) do
    state =
      case Reference.open(options[:folder]) do
        {:ok, state} -> state
        {:error, sentence} -> Mix.raise(sentence)
      end

    given = Keyword.take(options, [:socket, :port, :faults])

    # A server that cannot begin, or ends, says why before it takes this process along.
    Process.flag(:trap_exit, true)

    case Server.start_link([service: {Reference, state}] ++ tls(options) ++ given) do
      {:ok, server} ->
        place = options[:socket] || "port #{Server.port(server)}"
        Mix.shell().info("A key service FOR DEVELOPMENT listens on #{place}")

        receive do
          {:EXIT, ^server, reason} -> Mix.raise("the key service ended: #{inspect(reason)}")
        end

      {:error, reason} ->
        Mix.raise("the address cannot be had: #{inspect(reason)}")
    end
  end

  defp tls(options) do
    if options[:certificate] do
      client =
        if ca = options[:client_ca],
          do: [cacertfile: ca, verify: :verify_peer, fail_if_no_peer_cert: true],
          else: []

      [tls: [certfile: options[:certificate], keyfile: options[:private_key]] ++ client]
    else
      []
    end
  end
end
