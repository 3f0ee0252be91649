defmodule Kith.Test.KMSProxy do
  @moduledoc false
  # Stands between an instance and a key service: writes down what is asked, and fails as it is told.
  use GenServer

  @patience 60_000

  @doc "Starts one before the service on a Unix socket. It ends with the calling process."
  def start!(socket) do
    {:ok, proxy} = GenServer.start_link(__MODULE__, socket)
    proxy
  end

  @doc "Where an instance finds it."
  def url(proxy), do: "http://127.0.0.1:#{GenServer.call(proxy, :port)}"

  @doc """
  What becomes of the next requests, one after the other, and of all those after them again what the service says.

    * a number - that status is the answer, and the service learns nothing
    * `:cut` - the connection ends without an answer, and the service learns nothing
    * `:lost` - the service answers, and the connection ends before the answer is through
    * `:silent` - the service answers, and nothing comes until the client has gone
  """
  def fail(proxy, faults), do: GenServer.call(proxy, {:fail, faults})

  @doc "The requests, in their order: method with path, and body. They are forgotten then, but with `:keep`."
  def requests(proxy, keep? \\ nil), do: GenServer.call(proxy, {:requests, keep?})

  @impl true
  def init(socket) do
    {:ok, listener} =
      :gen_tcp.listen(0, [:binary, ip: {127, 0, 0, 1}, active: false, backlog: 64])

    proxy = self()
    spawn_link(fn -> accept(listener, socket, proxy) end)
    {:ok, %{listener: listener, faults: [], requests: []}}
  end

  @impl true
  def handle_call(:port, _from, state) do
    {:ok, port} = :inet.port(state.listener)
    {:reply, port, state}
  end

  def handle_call({:fail, faults}, _from, state), do: {:reply, :ok, %{state | faults: faults}}

  def handle_call({:requests, keep?}, _from, state) do
    kept = if keep? == :keep, do: state.requests, else: []
    {:reply, Enum.reverse(state.requests), %{state | requests: kept}}
  end

  def handle_call({:asked, request}, _from, state) do
    {fault, faults} = List.pop_at(state.faults, 0)
    {:reply, fault, %{state | faults: faults, requests: [request | state.requests]}}
  end

  defp accept(listener, socket, proxy) do
    {:ok, client} = :gen_tcp.accept(listener)
    pid = spawn(fn -> serve(client, socket, proxy) end)
    :ok = :gen_tcp.controlling_process(client, pid)
    send(pid, :go)
    accept(listener, socket, proxy)
  end

  defp serve(client, socket, proxy) do
    receive do
      :go -> :ok
    end

    {line, body, bytes} = request(client, "")

    case GenServer.call(proxy, {:asked, {line, body}}) do
      nil ->
        :gen_tcp.send(client, ask(socket, bytes))

      :cut ->
        :ok

      :lost ->
        answer = ask(socket, bytes)
        :gen_tcp.send(client, binary_part(answer, 0, byte_size(answer) - 1))

      :silent ->
        ask(socket, bytes)
        {:error, _} = :gen_tcp.recv(client, 0, @patience)

      status ->
        :gen_tcp.send(client, "HTTP/1.1 #{status} \r\nContent-Length: 2\r\n\r\n{}")
    end

    :gen_tcp.close(client)
  end

  # A whole request: its method with its path, its body, and all its bytes.
  defp request(client, received) do
    with [head, body] <- String.split(received, "\r\n\r\n", parts: 2),
         [_, length] = Regex.run(~r/^content-length: (\d+)\r?$/im, head),
         true <- byte_size(body) == String.to_integer(length) do
      [line, _] = String.split(head, " HTTP/1.1", parts: 2)
      {line, body, received}
    else
      _more ->
        {:ok, bytes} = :gen_tcp.recv(client, 0, @patience)
        request(client, received <> bytes)
    end
  end

  defp ask(socket, bytes) do
    {:ok, service} = :gen_tcp.connect({:local, socket}, 0, [:binary, active: false])
    :ok = :gen_tcp.send(service, bytes)
    all(service, "")
  end

  # The service ends its connections.
  defp all(service, received) do
    case :gen_tcp.recv(service, 0, @patience) do
      {:ok, bytes} -> all(service, received <> bytes)
      {:error, :closed} -> received
    end
  end
end
