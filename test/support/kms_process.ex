defmodule Kith.Test.KMSProcess do
  @moduledoc false
  # The key service for development, as a process of the operating system.

  @enforce_keys [:port, :os_pid, :folder, :faults, :listens]
  defstruct [:port, :os_pid, :folder, :faults, :listens]

  @doc """
  Starts one and waits until it listens: on a socket in the folder, or with `:listen` on what `Kith.KMS.Server` takes.
  It ends with the calling process.
  """
  def start!(folder, options \\ []) do
    faults = Path.join(folder, "faults")
    socket = Path.join(folder, "kms.sock")
    listen = Keyword.get(options, :listen, socket: socket)

    code = """
    {:ok, state} = Kith.KMS.Reference.open(#{inspect(Path.join(folder, "keys"))})
    options = #{inspect(listen, limit: :infinity)} ++ [service: {Kith.KMS.Reference, state}, faults: #{inspect(faults)}]
    {:ok, server} = Kith.KMS.Server.start_link(options)
    IO.puts("listens on \#{Kith.KMS.Server.port(server)}.")
    IO.gets("")
    System.halt(0)
    """

    port =
      Port.open({:spawn_executable, System.find_executable("elixir")}, [
        :binary,
        :exit_status,
        :stderr_to_stdout,
        args: ["-pa", Application.app_dir(:kith, "ebin"), "-e", code]
      ])

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    listens = await(port, "")

    %__MODULE__{
      port: port,
      os_pid: os_pid,
      folder: folder,
      faults: faults,
      listens: if(listens == "", do: socket, else: String.to_integer(listens))
    }
  end

  defp await(port, printed) do
    receive do
      {^port, {:data, data}} ->
        case Regex.run(~r/listens on (\d*)\./, printed <> data) do
          [_, listens] -> listens
          nil -> await(port, printed <> data)
        end

      {^port, {:exit_status, status}} ->
        raise "the key service ended with #{status}: #{printed}"
    end
  end

  @doc "Where an instance finds it."
  def url(%{listens: path}) when is_binary(path), do: "unix://" <> path
  def url(%{listens: port}), do: "http://127.0.0.1:#{port}"

  @doc "What it does wrong from now on, see `Kith.KMS.Server`; nothing without."
  def fault(kms, fault \\ ""), do: File.write!(kms.faults, fault)

  @doc "Ends it as a crash would, and waits until it is gone."
  def kill!(%{port: port, os_pid: os_pid}) do
    {_, 0} = System.cmd("kill", ["-9", "#{os_pid}"])

    receive do
      {^port, {:exit_status, _}} -> :ok
    end
  end
end
