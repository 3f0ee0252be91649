defmodule Kith.KMS.Server do
  @moduledoc """
  Serves a module with the behaviour `Kith.KMS` over HTTP, with nothing but Erlang's own libraries.

      {:ok, state} = Kith.KMS.Reference.open("/var/lib/kms")
      {:ok, server} = Kith.KMS.Server.start_link(service: {Kith.KMS.Reference, state}, socket: "/run/kms/kms.sock")

  It is a program of its own, not a child of the application that uses it: what it handles are keys, as Elixir terms.

    * `:service` (required) - `{module, state}`.
    * `:socket` - the path of a Unix socket, which only its owner may use (mode `0600`). One that is there is replaced.
    * `:port`, `:ip` - instead, a port of TCP, 0 for any, and an address, by default `{127, 0, 0, 1}`.
    * `:tls` - with `:port`, options of `:ssl` such as `[certfile: path, keyfile: path]`; with `cacertfile: path`, `verify: :verify_peer`
      and `fail_if_no_peer_cert: true` only clients with a certificate are let in. Without it, only this machine should reach
      the port.
    * `:faults` - for tests, a file that says what to do wrong, read with each request: `slow 500`, `drop`, `status 503`, `wrong_tag`,
      `garbage` or `huge`. A file that is missing or empty is no fault.

  One request is served on one connection. A request has at most 64 KB, and 5 seconds to arrive.
  """

  use GenServer

  @max_body 65_536
  @patience 5_000

  @type option ::
          {:service, {module, term}}
          | {:socket, Path.t()}
          | {:port, :inet.port_number()}
          | {:ip, :inet.ip_address()}
          | {:tls, keyword}
          | {:faults, Path.t()}

  @doc "Starts a server. Returns `{:error, reason}` when its address cannot be had."
  @spec start_link([option]) :: GenServer.on_start()
  def start_link(options), do: GenServer.start_link(__MODULE__, options)

  @doc "The port it listens on; `nil` on a Unix socket."
  @spec port(GenServer.server()) :: nil | :inet.port_number()
  def port(server), do: GenServer.call(server, :port)

  @impl true
  def init(options) do
    with {:ok, listener} <- listen(options) do
      server = self()
      context = %{service: options[:service], faults: options[:faults]}
      for _ <- 1..8, do: spawn_link(fn -> accept(listener, context, server) end)
      {:ok, listener}
    else
      {:error, reason} -> {:stop, reason}
    end
  end

  @impl true
  def handle_call(:port, _from, {:gen_tcp, socket} = listener) do
    case :inet.port(socket) do
      {:ok, port} when is_integer(port) -> {:reply, port, listener}
      _path -> {:reply, nil, listener}
    end
  end

  def handle_call(:port, _from, {:ssl, socket} = listener) do
    {:ok, {_, port}} = apply(:ssl, :sockname, [socket])
    {:reply, port, listener}
  end

  # The application :ssl is needed with :tls only, so no call that a compiler would look for.
  @common [:binary, packet: :http_bin, active: false, backlog: 64, reuseaddr: true]

  defp listen(options) do
    cond do
      path = options[:socket] ->
        File.rm(path)

        with {:ok, socket} <-
               :gen_tcp.listen(0, [
                 {:ifaddr, {:local, path}} | List.delete(@common, {:reuseaddr, true})
               ]),
             :ok <- File.chmod(path, 0o600),
             do: {:ok, {:gen_tcp, socket}}

      tls = options[:tls] ->
        {:ok, _} = Application.ensure_all_started(:ssl)
        address = [ip: options[:ip] || {127, 0, 0, 1}]

        with {:ok, socket} <-
               apply(:ssl, :listen, [options[:port] || 0, @common ++ address ++ tls]),
             do: {:ok, {:ssl, socket}}

      true ->
        address = [ip: options[:ip] || {127, 0, 0, 1}]

        with {:ok, socket} <- :gen_tcp.listen(options[:port] || 0, @common ++ address),
             do: {:ok, {:gen_tcp, socket}}
    end
  end

  defp accept({:gen_tcp, listener} = kind, context, server) do
    case :gen_tcp.accept(listener) do
      {:ok, socket} ->
        serve_apart({:gen_tcp, socket}, context)
        accept(kind, context, server)

      {:error, :closed} ->
        :ok

      {:error, _} ->
        accept(kind, context, server)
    end
  end

  defp accept({:ssl, listener} = kind, context, server) do
    with {:ok, socket} <- apply(:ssl, :transport_accept, [listener]),
         {:ok, socket} <- apply(:ssl, :handshake, [socket, @patience]) do
      serve_apart({:ssl, socket}, context)
      accept(kind, context, server)
    else
      {:error, :closed} -> if alive?(listener), do: accept(kind, context, server), else: :ok
      {:error, _} -> accept(kind, context, server)
    end
  end

  defp alive?(listener), do: match?({:ok, _}, apply(:ssl, :sockname, [listener]))

  # A request that fails takes nothing along, and says nothing: what it would say may hold a key.
  defp serve_apart({module, socket} = connection, context) do
    pid =
      spawn(fn ->
        Process.flag(:sensitive, true)

        receive do
          :go ->
            try do
              serve(connection, context)
            catch
              _kind, _reason -> :ok
            end

            module.close(socket)
        end
      end)

    with :ok <- module.controlling_process(socket, pid), do: send(pid, :go)
  end

  defp serve({module, socket} = connection, context) do
    fault = fault(context.faults)

    with {:ok, method, path, length} <- head(connection, nil, 0),
         {:ok, body} <- body(connection, length) do
      case fault do
        "drop" ->
          :ok

        _ ->
          with "slow " <> milliseconds <- fault,
               do: Process.sleep(String.to_integer(milliseconds))

          {status, fields} = answer(method, path, body, context.service)
          module.send(socket, respond(fault, status, fields))
      end
    end
  end

  defp fault(nil), do: ""

  defp fault(path),
    do: with({:ok, text} <- File.read(path), do: String.trim(text), else: (_ -> ""))

  defp head({module, socket} = connection, request, length) do
    case module.recv(socket, 0, @patience) do
      {:ok, {:http_request, method, {:abs_path, path}, _version}} ->
        head(connection, {method, path}, length)

      {:ok, {:http_header, _, :"Content-Length", _, value}} ->
        head(connection, request, String.to_integer(value))

      {:ok, {:http_header, _, _, _, _}} ->
        head(connection, request, length)

      {:ok, :http_eoh} when request != nil and length <= @max_body ->
        {method, path} = request
        {:ok, method, path, length}

      _ ->
        :error
    end
  end

  defp body(_connection, 0), do: {:ok, ""}

  defp body({module, socket}, length) do
    options = [packet: :raw]

    :ok =
      if module == :ssl,
        do: apply(:ssl, :setopts, [socket, options]),
        else: :inet.setopts(socket, options)

    module.recv(socket, length, @patience)
  end

  defp answer(:POST, "/create_dek_for_thread", body, {module, state}) do
    with {:ok, %{"thread_id" => thread_id}} when is_binary(thread_id) <- decode(body) do
      result(module.create_dek_for_thread(state, thread_id), fn dek ->
        [{"key_id", dek.key_id}, {"wrapped", Base.encode64(dek.wrapped_dek)}]
      end)
    else
      _ -> {400, [{"error", "bad request"}]}
    end
  end

  defp answer(:POST, "/encrypt", body, {module, state}) do
    with {:ok, %{"key_id" => key_id, "plaintext" => plaintext} = fields} when is_binary(key_id) <-
           decode(body),
         {:ok, plaintext} <- decode64(plaintext),
         {:ok, aad} <- decode64(fields["aad"] || "") do
      case module.encrypt_with_dek(state, key_id, plaintext, aad) do
        {:ok, ciphertext, version} ->
          {200, [{"ciphertext", Base.encode64(ciphertext)}, {"key_version", version}]}

        error ->
          result(error, & &1)
      end
    else
      _ -> {400, [{"error", "bad request"}]}
    end
  end

  defp answer(:POST, "/decrypt", body, {module, state}) do
    with {:ok, %{"key_id" => key_id, "ciphertext" => ciphertext} = fields}
         when is_binary(key_id) <- decode(body),
         {:ok, ciphertext} <- decode64(ciphertext),
         {:ok, aad} <- decode64(fields["aad"] || "") do
      module.decrypt_with_dek(state, key_id, ciphertext, aad, fields["key_version"])
      |> result(&[{"plaintext", Base.encode64(&1)}])
    else
      _ -> {400, [{"error", "bad request"}]}
    end
  end

  defp answer(:GET, "/get_wrapped?key_id=" <> key_id, _body, {module, state}) do
    if key_id =~ ~r/%(?![0-9A-Fa-f]{2})/ do
      {400, [{"error", "bad request"}]}
    else
      module.wrapped_dek(state, URI.decode(key_id))
      |> result(&[{"wrapped", Base.encode64(&1)}])
    end
  end

  defp answer(_method, _path, _body, _service), do: {405, [{"error", "no such operation"}]}

  defp result({:ok, value}, fields), do: {200, fields.(value)}
  defp result({:error, :not_found}, _fields), do: {404, [{"error", "no such key"}]}
  defp result({:error, :refused}, _fields), do: {422, [{"error", "it does not decrypt"}]}
  defp result({:error, :unavailable}, _fields), do: {503, [{"error", "not now"}]}

  defp respond("status " <> status, _status, _fields), do: response(status, "{}")
  defp respond("garbage", status, _fields), do: response(status, ~s({"plaintext": [1, 2))

  defp respond("huge", status, fields),
    do: response(status, encode([{"padding", String.duplicate("x", 1_000_000)} | fields]))

  defp respond("wrong_tag", status, fields) do
    fields =
      for {name, value} <- fields do
        if name in ["plaintext", "ciphertext"], do: {name, flip(value)}, else: {name, value}
      end

    response(status, encode(fields))
  end

  defp respond(_none, status, fields), do: response(status, encode(fields))

  defp flip(base64) do
    bytes = Base.decode64!(base64)
    size = byte_size(bytes) - 1
    Base.encode64(binary_part(bytes, 0, size) <> <<Bitwise.bxor(:binary.last(bytes), 1)>>)
  end

  defp response(status, body) do
    [
      "HTTP/1.1 #{status} \r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ",
      "#{byte_size(body)}\r\n\r\n",
      body
    ]
  end

  # JSON of flat objects, which is all there is. OTP has had a library for it since 27 only.

  defp encode(fields) do
    fields =
      Enum.map_join(fields, ",", fn
        {name, value} when is_integer(value) -> ~s("#{name}":#{value})
        {name, value} -> ~s("#{name}":"#{value}")
      end)

    "{#{fields}}"
  end

  @string ~S{"((?:[^"\\\x00-\x1f]|\\["\\/])*)"}

  defp decode(body) do
    with true <- String.valid?(body),
         [_, inner] <- Regex.run(~r/\A\s*\{(.*)\}\s*\z/s, body) do
      decode_fields(inner, %{})
    else
      _ -> :error
    end
  end

  defp decode_fields(rest, fields) do
    case Regex.run(~r<\A\s*#{@string}\s*:\s*(?:#{@string}|(\d{1,15}))\s*(,|\z)>u, rest) do
      [all, name, string, "", more] ->
        next(rest, all, more, Map.put(fields, name, unescape(string)))

      [all, name, "", number, more] ->
        next(rest, all, more, Map.put(fields, name, String.to_integer(number)))

      _ ->
        :error
    end
  end

  defp next(_rest, _all, "", fields), do: {:ok, fields}

  defp next(rest, all, ",", fields),
    do: decode_fields(binary_part(rest, byte_size(all), byte_size(rest) - byte_size(all)), fields)

  defp unescape(string), do: Regex.replace(~r{\\(["\\/])}, string, "\\1")

  defp decode64(text) when is_binary(text), do: Base.decode64(text)
  defp decode64(_), do: :error
end
