# Writes down all that is given to PubSub on this server, as text, so that a test can search it.
spawn(fn ->
  file = File.open!(System.fetch_env!("FAMILY_CHAT_TAP"), [:write, :utf8])

  for {function, arity} <- [
        broadcast: 3,
        broadcast: 4,
        broadcast_from: 4,
        broadcast_from: 5,
        local_broadcast: 3
      ],
      do: 1 = :erlang.trace_pattern({Phoenix.PubSub, function, arity}, true, [:global])

  :erlang.trace(:all, true, [:call])

  Stream.repeatedly(fn ->
    receive(do: ({:trace, _pid, :call, {_module, _function, arguments}} -> arguments))
  end)
  |> Enum.each(
    &IO.puts(file, inspect(&1, limit: :infinity, printable_limit: :infinity, width: :infinity))
  )
end)
