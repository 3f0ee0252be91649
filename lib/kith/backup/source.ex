defmodule Kith.Backup.Source do
  @moduledoc false
  # Where the bytes of a backup come from: any enumerable, read once, and closed whatever happens.

  import Kith.Backup.Engine

  alias Kith.Backup.Record

  @header_bytes 86

  # What is read in one native call: at least, where there is as much, and at most.
  @gathered 65_536
  @slice 262_144

  @doc """
  Reads the header, and gives `fun` the reader and the chunks that follow: a function that returns {chunk, next} or :done.
  """
  def reading(instance, backup, secret, fun) do
    # Where the enumerable is suspended, while it is.
    suspended = {__MODULE__, make_ref()}

    try do
      case header(chunks(suspended, backup), "") do
        {:ok, header, next} ->
          with {:ok, reader} <- derive(instance, :backup_open, [header, secret], secret),
               do: fun.(reader, next)

        :error ->
          malformed()
      end
    after
      # What was not read to its end is closed.
      with continue when continue != nil <- Process.delete(suspended),
           do: continue.({:halt, nil})
    end
  end

  # The enumerable is suspended between two chunks, so that the work of the secret is done before the transaction.
  defp chunks(suspended, backup) when is_binary(backup), do: chunks(suspended, [backup])

  # Reading by lines turns CR LF into LF.
  defp chunks(suspended, %File.Stream{line_or_bytes: :line} = file),
    do: chunks(suspended, %{file | line_or_bytes: @gathered})

  defp chunks(suspended, backup) do
    if Enumerable.impl_for(backup) == nil, do: no_backup()
    next(suspended, &Enumerable.reduce(backup, &1, fn chunk, _ -> {:suspend, chunk} end))
  end

  defp next(suspended, continue) do
    fn ->
      # One that raises has closed itself.
      Process.delete(suspended)

      case continue.({:cont, nil}) do
        {:suspended, chunk, continue} ->
          Process.put(suspended, continue)
          if not is_binary(chunk), do: no_backup()
          {chunk, next(suspended, continue)}

        _done ->
          :done
      end
    end
  end

  # What is given in its place may well be a secret.
  defp no_backup,
    do: raise(ArgumentError, "expected a backup to be an enumerable of binaries, or a binary")

  defp header(next, read) when byte_size(read) >= @header_bytes do
    <<header::binary-size(@header_bytes), rest::binary>> = read
    {:ok, header, fn -> {rest, next} end}
  end

  defp header(next, read) do
    case next.() do
      {chunk, next} -> header(next, read <> chunk)
      :done -> :error
    end
  end

  @doc """
  Feeds all chunks to the reader, and what is complete to `fun`. Says {:ok, state} only when the last chunk was the last one.
  """
  def fold(instance, reader, next, state, fun, size \\ @header_bytes) do
    {bytes, next} = gather(next, [], 0)

    with {:ok, state} <- feed(instance, reader, bytes, state, fun) do
      size = size + byte_size(bytes)

      if next == :done,
        do: ended(records(instance, reader, nil, state, fun), size),
        else: fold(instance, reader, next, state, fun, size)
    end
  end

  defp ended({:ok, %{whole?: true} = state}, size), do: {:ok, Map.put(state, :size, size)}
  defp ended({:ok, _state}, _size), do: malformed()
  defp ended(error, _size), do: error

  # Small pieces, and a native call for each, would take longer than the work.
  defp gather(next, gathered, size) when size >= @gathered,
    do: {IO.iodata_to_binary(gathered), next}

  defp gather(next, gathered, size) do
    case next.() do
      {chunk, next} -> gather(next, [gathered | chunk], size + byte_size(chunk))
      :done -> {IO.iodata_to_binary(gathered), :done}
    end
  end

  defp feed(_instance, _reader, <<>>, state, _fun), do: {:ok, state}

  defp feed(instance, reader, chunk, state, fun) do
    {slice, rest} = split(chunk)

    with {:ok, state} <- records(instance, reader, slice, state, fun),
         do: feed(instance, reader, rest, state, fun)
  end

  defp split(<<slice::binary-size(@slice), rest::binary>>), do: {slice, rest}
  defp split(chunk), do: {chunk, <<>>}

  defp records(instance, reader, bytes, state, fun) do
    with {:ok, read} <- native(instance, :backup_read, [reader, bytes]),
         {:ok, records} <- decode(read),
         do: fun.(instance, reader, {records, state})
  end

  defp decode(read) do
    Enum.reduce_while(read, {:ok, []}, fn record, {:ok, records} ->
      case Record.decode(record) do
        {:ok, record} -> {:cont, {:ok, [record | records]}}
        :error -> {:halt, malformed()}
      end
    end)
    |> case do
      {:ok, records} -> {:ok, Enum.reverse(records)}
      error -> error
    end
  end
end
