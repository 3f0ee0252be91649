defmodule Kith.KMS.ServerTest do
  use Kith.Case, async: true

  alias Kith.KMS.{Reference, Server}

  setup do
    {:ok, state} = Reference.open(Path.join(tmp_dir!(), "keys"))
    server = start_supervised!({Server, service: {Reference, state}, port: 0})
    %{state: state, port: Server.port(server), server: server}
  end

  # What comes for some bytes until the connection ends; `nil` where that is at once.
  defp raw(port, bytes) do
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])
    :gen_tcp.send(socket, bytes)
    received = received(socket, "")
    :gen_tcp.close(socket)
    if received != "", do: received
  end

  defp received(socket, before) do
    case :gen_tcp.recv(socket, 0, 60_000) do
      {:ok, bytes} -> received(socket, before <> bytes)
      {:error, :closed} -> before
    end
  end

  # Status and body of the answer.
  defp ask(port, line, body \\ "") do
    answer = raw(port, "#{line} HTTP/1.1\r\nContent-Length: #{byte_size(body)}\r\n\r\n#{body}")
    assert [_, status, body] = Regex.run(~r/\AHTTP\/1\.1 (\d+) .*?\r\n\r\n(.*)\z/s, answer)
    {String.to_integer(status), body}
  end

  defp status(port, line, body \\ ""), do: elem(ask(port, line, body), 0)

  test "each operation answers as the wire says", %{port: port, state: state} do
    {200, made} = ask(port, "POST /create_dek_for_thread", ~s({"thread_id":"ab"}))
    [_, key_id, wrapped] = Regex.run(~r/\A\{"key_id":"([^"]+)","wrapped":"([^"]+)"\}\z/, made)
    assert Reference.wrapped_dek(state, key_id) == Base.decode64(wrapped)

    assert ask(port, "GET /get_wrapped?key_id=#{key_id}") == {200, ~s({"wrapped":"#{wrapped}"})}

    # With white space and in any order, as JSON may be.
    aad = Base.encode64("place")
    request = ~s( {"aad" : "#{aad}", "plaintext":"AQI=",\n"key_id":"#{key_id}"}\n)
    {200, encrypted} = ask(port, "POST /encrypt", request)
    [_, ciphertext] = Regex.run(~r/\A\{"ciphertext":"([^"]+)","key_version":1\}\z/, encrypted)

    decrypt = fn more ->
      ask(port, "POST /decrypt", ~s({"key_id":"#{key_id}","ciphertext":"#{ciphertext}"#{more}}))
    end

    assert decrypt.(~s(,"aad":"#{aad}","key_version":1)) == {200, ~s({"plaintext":"AQI="})}
    assert {422, _} = decrypt.(~s(,"aad":"AQI="))
    assert {422, _} = decrypt.("")
    assert {404, _} = decrypt.(~s(,"aad":"#{aad}","key_version":2))
  end

  test "what is no request of the protocol gets a status, and whoever comes after it an answer",
       %{
         port: port,
         server: server
       } do
    key_id = String.duplicate("0", 32)

    # 404 would say that there is no such key.
    for line <- [
          "GET /",
          "GET /nothing",
          "GET /encrypt",
          "GET /get_wrapped",
          "PUT /decrypt",
          "BREW /create_dek_for_thread",
          "POST /get_wrapped?key_id=#{key_id}"
        ],
        do: assert(status(port, line, "{}") == 405, line)

    fields = ~s("key_id":"#{key_id}","plaintext":"AQI=")

    for body <- [
          "",
          "{",
          "{}",
          "[]",
          "null",
          <<"{", 0xFF, "}">>,
          "{#{fields}",
          "{#{fields},}",
          "{#{fields}} {}",
          "{#{fields},\"aad\":null}",
          "{#{fields},\"aad\":1}",
          "{#{fields},\"aad\":\"A\"}",
          ~s({"key_id":"#{key_id}"}),
          ~s({"key_id":1,"plaintext":"AQI="}),
          ~s({"key_id":"#{key_id}","plaintext":"AQI"}),
          ~s({"key_id":"#{key_id}","plaintext":"A-_="}),
          ~s({"key_id":"#{key_id}","plaintext":1})
        ] do
      assert status(port, "POST /encrypt", body) == 400, body

      assert status(port, "POST /decrypt", String.replace(body, "plaintext", "ciphertext")) ==
               400,
             body
    end

    for body <- ["{}", ~s({"thread_id":1}), ~s({"thread":"ab"})],
        do: assert(status(port, "POST /create_dek_for_thread", body) == 400, body)

    for name <- ["%", "%2", "%zz"],
        do: assert(status(port, "GET /get_wrapped?key_id=#{name}") == 400, name)

    for name <- ["", "..%2Fmaster.key", "../master", "%00", "%FF", key_id],
        do: assert(status(port, "GET /get_wrapped?key_id=#{name}") == 404, name)

    for bytes <- [
          "\r\n\r\n",
          "SSH-2.0-OpenSSH\r\n",
          "OPTIONS * HTTP/1.1\r\n\r\n",
          "POST /encrypt HTTP/1.1\r\nContent-Length: x\r\n\r\n{}",
          "POST /encrypt HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
          # More than it reads.
          "POST /encrypt HTTP/1.1\r\nContent-Length: 65537\r\n\r\n"
        ],
        do: assert(raw(port, bytes) == nil, inspect(bytes))

    assert {200, _} = ask(port, "POST /create_dek_for_thread", ~s({"thread_id":"ab"}))
    assert Server.port(server) == port
  end

  test "a body may have 64 KB", %{port: port} do
    body = String.pad_trailing(~s({"thread_id":"ab"}), 65_536)
    assert {200, _} = ask(port, "POST /create_dek_for_thread", body)
  end

  test "those who say nothing keep nobody waiting", %{port: port} do
    silent =
      for _ <- 1..20 do
        {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])
        :ok = :gen_tcp.send(socket, "POST /encrypt HTTP/1.1\r\n")
        socket
      end

    assert {200, _} = ask(port, "POST /create_dek_for_thread", ~s({"thread_id":"ab"}))
    Enum.each(silent, &:gen_tcp.close/1)
  end

  test "a Unix socket is its owner's, and one that is there is replaced", %{state: state} do
    path = Path.join(tmp_dir!(), "kms.sock")

    for id <- [:first, :second] do
      server = start_supervised!({Server, service: {Reference, state}, socket: path}, id: id)
      assert Server.port(server) == nil
      assert Bitwise.band(File.stat!(path).mode, 0o777) == 0o600

      {:ok, socket} = :gen_tcp.connect({:local, path}, 0, [:binary, active: false])
      :ok = :gen_tcp.send(socket, "GET / HTTP/1.1\r\n\r\n")
      assert received(socket, "") =~ "405"
    end
  end

  test "an address that cannot be had is an error", %{state: state, port: port} do
    Process.flag(:trap_exit, true)
    service = [service: {Reference, state}]
    assert Server.start_link([port: port] ++ service) == {:error, :eaddrinuse}
    assert Server.start_link([socket: "/nowhere/kms.sock"] ++ service) == {:error, :enoent}
  end
end
