defmodule Mix.Tasks.Kith.KmsTest do
  # What Mix has loaded is global.
  use Kith.Case, async: false

  alias Mix.Tasks.Kith.Kms

  @root Path.expand("../../..", __DIR__)

  # Ends Mix, and then itself, when it is told to or whoever started it has gone.
  @script ~S"""
  mix kith.kms "$@" </dev/null &
  read -r _
  kill -TERM $! && wait $!
  echo "ended with $?."
  """

  # Runs `mix kith.kms`, and returns its port and what it listens on.
  defp serve!(arguments) do
    port =
      Port.open({:spawn_executable, System.find_executable("sh")}, [
        :binary,
        :exit_status,
        :stderr_to_stdout,
        cd: @root,
        env: [{~c"MIX_ENV", ~c"test"}],
        args: ["-c", @script, "sh"] ++ arguments
      ])

    [_, place] = await(port, ~r/A key service FOR DEVELOPMENT listens on (.*)\n/)
    {port, place}
  end

  defp await(port, pattern, printed \\ "") do
    case Regex.run(pattern, printed) do
      nil ->
        receive do
          {^port, {:data, data}} -> await(port, pattern, printed <> data)
          {^port, {:exit_status, status}} -> flunk("it ended with #{status}: #{printed}")
        end

      found ->
        found
    end
  end

  defp stop!(port) do
    Port.command(port, "\n")
    await(port, ~r/ended with 0\./)
    assert_receive {^port, {:exit_status, 0}}, 60_000
  end

  defp start!(source, options \\ []) do
    source = Keyword.merge([timeout: 20_000, connect_timeout: 20_000, pause: 0], source)
    start_kith!([keys: [current: {"kms", {:kms, source}}]] ++ options)
  end

  test "people converse with it on a socket, and it opens what it made before" do
    folder = tmp_dir!()
    [keys, socket] = for name <- ["keys", "kms.sock"], do: Path.join(folder, name)
    arguments = ["--folder", keys, "--socket", socket]

    {port, ^socket} = serve!(arguments)
    options = [database: Path.join(folder, "kith.db")]
    kith = start!([url: "unix://" <> socket, retries: 0], options)
    converse!(kith, "ada", "ben")
    stop!(port)
    stop_kith!(kith)

    kith = start!([url: "unix://" <> socket, retries: 0], options)
    assert reason(Kith.encrypt(kith, "ada", "ben", "hello")) == :unavailable
    faults = Path.join(folder, "faults")
    {_port, ^socket} = serve!(arguments ++ ["--faults", faults])
    File.write!(faults, "status 503")
    assert reason(Kith.encrypt(kith, "ada", "ben", "hello")) == :unavailable
    File.rm!(faults)
    assert send!(kith, "ada", "ben", "again") == "again"
  end

  test "with --client-ca it lets in who has a certificate" do
    folder = tmp_dir!()

    [ca, server, server_key, client, client_key] =
      for name <- ~w(ca server server.key client client.key) do
        path = Path.join(folder, name <> ".pem")
        File.cp!(Path.join(@root, "test/support/certificates/ours.#{name}.pem"), path)
        File.chmod!(path, 0o600)
        path
      end

    {_port, "port " <> number} =
      serve!(
        ~w(--port 0 --folder) ++
          [Path.join(folder, "keys"), "--certificate", server, "--private-key", server_key] ++
          ["--client-ca", ca]
      )

    source = [url: "https://localhost:#{number}", ca_file: ca, retries: 0]
    shown = [certificate: client, private_key: client_key]
    converse!(start!(source ++ shown), "ada", "ben")
    assert reason(Kith.register(start!(source), "ada")) == :unavailable
  end

  test "what it cannot serve it says" do
    folder = tmp_dir!()
    keys = Path.join(folder, "keys")
    socket = Path.join(folder, "kms.sock")

    for arguments <- [
          [],
          ["--folder", keys],
          ["--socket", socket],
          ["--folder", keys, "--socket", socket, "--port", "0"],
          ["--folder", keys, "--port", "many"],
          ["--folder", keys, "--port", "0", "--certificate", "server.pem"],
          ["--folder", keys, "--port", "0", "--private-key", "server.key"],
          ["--folder", keys, "--port", "0", "more"],
          ["--folder", keys, "--port", "0", "--unknown"]
        ] do
      assert_raise Mix.Error, ~r/expected --folder, and --socket or --port/, fn ->
        Kms.run(arguments)
      end
    end

    refute File.exists?(keys)

    nowhere = Path.join(folder, "nowhere/kms.sock")

    assert_raise Mix.Error, "the address cannot be had: :enoent", fn ->
      Kms.run(["--folder", keys, "--socket", nowhere])
    end

    File.write!(Path.join(keys, "master.key"), "no key")

    assert_raise Mix.Error, ~r/master.key is not 32 bytes in Base64/, fn ->
      Kms.run(["--folder", keys, "--socket", socket])
    end
  end
end
