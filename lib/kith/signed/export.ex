defmodule Kith.Signed.Export do
  @moduledoc """
  Exports that are authenticated as a whole, by HMAC-SHA256.

      key = Kith.Signed.Export.key!({"2026-11", {:file, "/etc/my_app/export.key"}})

      MyApp.Repo.stream(query)
      |> Stream.map(&Jason.encode!/1)
      |> Kith.Signed.Export.stream(key, purpose: "orders")
      |> Enum.into(File.stream!("orders.kith"))

      # elsewhere, with the same key
      {:ok, %{rows: 1_204}} = Kith.Signed.Export.verify(File.stream!("orders.kith", [], 65_536), key, purpose: "orders")
      for row <- Kith.Signed.Export.rows!(File.stream!("orders.kith", [], 65_536), key, purpose: "orders"), do: import(row)

  Rows are binaries, of any content, and come as a stream, of which a chunk is in memory at a time. An export that is cut, extended, reordered,
  put together from two, or changed in one bit is refused. Everybody who has the key can write exports, so it proves to nobody else who did; where
  that matters, sign with `Kith.Signed.sign/3`. Nothing is encrypted.

  ## The key

  `{id, source}` as in the option `:keys` of `Kith.Options`: 32 bytes as base64 in `{:env, name}`, or in `{:file, path}` with a mode
  that gives others nothing; `{:key, bytes}` is for tests. It is read by the native library and never an Elixir term. `mix kith.gen.key` makes one. The id is in
  the export. To read those under several keys give a list.

  ## Format

  Numbers are big-endian. An export is a header, chunks, and an end. Each is a frame:

  | bytes | field |
  | --- | --- |
  | 1 | type: `00` header, `01` chunk, `02` end |
  | 4 | length n of the body |
  | n | body |
  | 32 | MAC |

  The MAC is HMAC-SHA256 over the MAC of the frame before (32 zero bytes for the header), and type, length and body of this one. So each vouches for all before it, and
  the end for the whole.

  | body | content |
  | --- | --- |
  | header | `kith-signed-export-v1` and a zero byte, 16 random bytes, milliseconds since 1970 (8), key id and purpose, each behind its length (1) |
  | chunk | rows, each behind its length (4) |
  | end | the number of rows (8) |
  """

  alias Kith.{Error, Native, Telemetry, Validation}

  @label "kith-signed-export-v1\0"
  @no_mac <<0::256>>
  # Comes after the last element of a stream, and is none.
  @done {__MODULE__, :done}

  # A chunk is closed once it has as much.
  @chunk 65_536
  @max_row 8_388_608
  @max_body @chunk + @max_row + 4
  # Label, id, time, and two texts.
  @max_header 22 + 16 + 8 + 2 + 64 + 255

  @enforce_keys [:id, :mac]
  defstruct [:id, :mac]

  @typedoc "A key, opened by `key/1`."
  @opaque key :: %__MODULE__{id: String.t(), mac: reference}

  @typedoc "What an export says of itself."
  @type summary :: %{
          rows: non_neg_integer,
          export_id: <<_::128>>,
          created_at: non_neg_integer,
          key_id: String.t(),
          purpose: String.t()
        }

  @doc """
  Opens a key.

  Errors: `:malformed`, whose message says what is wrong with the source.
  """
  @spec key({String.t(), {:env, String.t()} | {:file, Path.t()} | {:key, binary}}) ::
          {:ok, key} | {:error, Error.t()}
  def key({id, {kind, value}}) when kind in [:env, :file, :key] and is_binary(value) do
    if not (is_binary(id) and id =~ ~r/\A[\x21-\x7E]{1,64}\z/) do
      raise ArgumentError,
            "expected the id of a key to be 1 to 64 printable ASCII characters without spaces"
    end

    case watch(Native.mac_key_open({kind, value}), :mac_key_open) do
      {:ok, mac} -> {:ok, %__MODULE__{id: id, mac: mac}}
      {:error, {:invalid, message}} -> {:error, Error.new(:malformed, message)}
      {:error, reason} -> {:error, Error.new(reason)}
    end
  end

  def key(_other), do: raise(ArgumentError, "expected a key to be {id, source}")

  @doc "Same as `key/1`, but returns the key or raises `Kith.Error`."
  @spec key!({String.t(), {atom, binary}}) :: key
  def key!(named) do
    case key(named) do
      {:ok, key} -> key
      {:error, error} -> raise error
    end
  end

  @doc """
  Returns rows as a stream of binaries, which together are an export.

    * `:purpose` - what it is, such as `"orders"`: a string of at most 255 bytes. Whoever reads it says the same. Required.

  A row has at most 8 MiB; a larger one, or one that is no binary, raises while the stream runs, and what was written by then is an export that was cut.
  """
  @spec stream(Enumerable.t(), key, purpose: String.t()) :: Enumerable.t()
  def stream(rows, %__MODULE__{} = key, options) do
    purpose = purpose!(options)

    Stream.concat(rows, [@done])
    |> Stream.transform(
      fn -> {:header, purpose} end,
      fn row, state -> write(row, state, key) end,
      fn _state -> :ok end
    )
  end

  defp write(row, {:header, purpose}, key) do
    now = System.system_time(:millisecond)

    body =
      @label <>
        :crypto.strong_rand_bytes(16) <>
        <<now::64, byte_size(key.id), key.id::binary, byte_size(purpose), purpose::binary>>

    {frame, mac} = frame(0, body, @no_mac, key)
    {frames, state} = write(row, {mac, [], 0, 0}, key)
    {[frame | frames], state}
  end

  defp write(@done, {mac, chunk, _size, count}, key) do
    {chunk, mac} = close(chunk, mac, key)
    {frame, mac} = frame(2, <<count::64>>, mac, key)
    execute(:written, %{rows: count})
    {chunk ++ [frame], {mac, [], 0, count}}
  end

  defp write(row, {mac, chunk, size, count}, key)
       when is_binary(row) and byte_size(row) <= @max_row do
    chunk = [chunk | [<<byte_size(row)::32>>, row]]
    size = size + byte_size(row) + 4

    if size >= @chunk do
      {frames, mac} = close(chunk, mac, key)
      {frames, {mac, [], 0, count + 1}}
    else
      {[], {mac, chunk, size, count + 1}}
    end
  end

  defp write(_row, _state, _key),
    do: raise(ArgumentError, "expected each row to be a binary of at most #{@max_row} bytes")

  defp close([], mac, _key), do: {[], mac}

  defp close(chunk, mac, key) do
    {frame, mac} = frame(1, IO.iodata_to_binary(chunk), mac, key)
    {[frame], mac}
  end

  defp frame(type, body, before, key) do
    framed = <<type, byte_size(body)::32, body::binary>>

    case watch(Native.mac_create(key.mac, before <> framed), :mac_create) do
      {:ok, mac} -> {framed <> mac, mac}
      {:error, reason} -> raise Error.new(reason)
    end
  end

  @doc """
  Reads all of an export and says whether it is whole. Nothing of it is kept.

  The export is an enumerable of binaries, cut anywhere. `keys` is a key or a list of them. Takes the `:purpose` it was written with.

  Errors: `:tampered` when it was cut, extended, reordered or changed, or is for another purpose; `:key_not_found` when its key is not
  among those given; `:malformed` when it does not begin like an export.
  """
  @spec verify(Enumerable.t(), key | [key], purpose: String.t()) ::
          {:ok, summary} | {:error, Error.t()}
  def verify(export, keys, options) do
    {keys, purpose} = {keys!(keys), purpose!(options)}

    Telemetry.span([:kith, :export, :verify], %{}, fn ->
      result =
        try do
          export
          |> parts(keys, purpose)
          |> Enum.reduce(nil, fn
            {:end, summary}, nil -> summary
            _rows, nil -> nil
          end)
          |> then(&{:ok, &1})
        rescue
          error in Error -> {:error, error}
        end

      rows = with {:ok, %{rows: rows}} <- result, do: rows, else: (_ -> 0)
      {result, %{rows: rows}, Telemetry.outcome(result)}
    end)
  end

  @doc """
  Returns the rows of an export as a stream, each after the frame it is in was authenticated.

  Raises `Kith.Error` with the reasons of `verify/3` where it finds them, and that may be at the end: the rows before are the first ones
  of the export, and others may be missing. Where part of an export would do harm, call `verify/3` before, or undo what was done when it raises,
  as a transaction around it does.
  """
  @spec rows!(Enumerable.t(), key | [key], purpose: String.t()) :: Enumerable.t()
  def rows!(export, keys, options) do
    {keys, purpose} = {keys!(keys), purpose!(options)}

    export
    |> parts(keys, purpose)
    |> Stream.flat_map(fn
      {:end, _summary} -> []
      rows -> rows
    end)
  end

  # Lists of rows, and then {:end, summary}.
  defp parts(export, keys, purpose) do
    export
    |> Stream.concat([@done])
    |> Stream.transform(
      fn -> %{buffer: [], size: 0, needs: 5, state: {:header, keys, purpose}, rows: 0} end,
      &read/2,
      fn _reader -> :ok end
    )
  end

  defp read(@done, %{state: {:ended, summary}, size: 0} = reader),
    do: {[{:end, summary}], reader}

  defp read(@done, %{state: {:header, _, _}}), do: malformed()
  defp read(@done, _reader), do: tampered()

  defp read(bytes, reader) when is_binary(bytes) do
    reader = %{
      reader
      | buffer: [reader.buffer | bytes],
        size: reader.size + byte_size(bytes)
    }

    if reader.size >= reader.needs,
      do: frames(IO.iodata_to_binary(reader.buffer), reader, []),
      else: {[], reader}
  end

  defp read(_other, _reader),
    do: raise(ArgumentError, "expected an export to be an enumerable of binaries")

  defp frames(<<>>, reader, parts),
    do: {Enum.reverse(parts), %{reader | buffer: [], size: 0, needs: 5}}

  # Nothing comes after the end.
  defp frames(_more, %{state: {:ended, _}}, _parts), do: tampered()

  defp frames(<<type, length::32, _::binary>> = buffer, reader, parts) do
    limit!(type, length, reader.state)
    needs = length + 37

    if byte_size(buffer) >= needs do
      framed = binary_part(buffer, 0, needs - 32)
      body = binary_part(buffer, 5, length)
      mac = binary_part(buffer, needs - 32, 32)
      {part, reader} = frame({type, body, framed, mac}, reader)
      rest = binary_part(buffer, needs, byte_size(buffer) - needs)
      frames(rest, reader, part ++ parts)
    else
      {Enum.reverse(parts), %{reader | buffer: buffer, size: byte_size(buffer), needs: needs}}
    end
  end

  defp frames(buffer, reader, parts),
    do: {Enum.reverse(parts), %{reader | buffer: buffer, size: byte_size(buffer), needs: 5}}

  # What is not authenticated yet does not decide how much is kept in memory.
  defp limit!(0, length, {:header, _, _}) when length <= @max_header, do: :ok
  defp limit!(_type, _length, {:header, _, _}), do: malformed()
  defp limit!(1, length, _state) when length <= @max_body, do: :ok
  defp limit!(2, 8, _state), do: :ok
  defp limit!(_type, _length, _state), do: tampered()

  defp frame({0, body, framed, mac}, %{state: {:header, keys, purpose}} = reader) do
    with <<@label, export_id::binary-16, created_at::64, rest::binary>> <- body,
         <<size, key_id::binary-size(size), rest::binary>> <- rest,
         <<size, named::binary-size(size)>> <- rest do
      key =
        Enum.find(keys, &(&1.id == key_id)) ||
          raise Error.new(:key_not_found, "the export is under a key that was not given")

      authenticate(key, @no_mac <> framed, mac)
      if named != purpose, do: raise(Error.new(:tampered, "the export is for another purpose"))

      summary = %{
        export_id: export_id,
        created_at: created_at,
        key_id: key_id,
        purpose: purpose,
        rows: 0
      }

      {[], %{reader | state: {:rows, key, mac, summary}}}
    else
      _ -> malformed()
    end
  end

  defp frame({type, body, framed, mac}, %{state: {:rows, key, before, summary}} = reader) do
    authenticate(key, before <> framed, mac)

    case {type, body} do
      {1, body} ->
        rows = rows(body, [])
        {[rows], %{reader | state: {:rows, key, mac, summary}, rows: reader.rows + length(rows)}}

      {2, <<count::64>>} when count == reader.rows ->
        {[], %{reader | state: {:ended, %{summary | rows: count}}}}

      _ ->
        tampered()
    end
  end

  defp rows(<<size::32, row::binary-size(size), rest::binary>>, rows),
    do: rows(rest, [row | rows])

  defp rows(<<>>, rows), do: Enum.reverse(rows)
  defp rows(_other, _rows), do: tampered()

  defp authenticate(key, bytes, mac) do
    case watch(Native.mac_verify(key.mac, bytes, mac), :mac_verify) do
      :ok -> :ok
      {:error, reason} -> raise Error.new(reason)
    end
  end

  @spec tampered() :: no_return
  defp tampered, do: raise(Error.new(:tampered))
  @spec malformed() :: no_return
  defp malformed, do: raise(Error.new(:malformed))

  defp watch(result, function), do: Telemetry.watch(result, nil, function)

  defp execute(:written, measurements),
    do:
      Telemetry.emit([
        {[:kith, :export, :written], Map.put(measurements, :system_time, System.system_time()),
         %{}}
      ])

  defp keys!(%__MODULE__{} = key), do: [key]

  defp keys!(keys) do
    if is_list(keys) and keys != [] and Enum.all?(keys, &is_struct(&1, __MODULE__)),
      do: keys,
      else: raise(ArgumentError, "expected a key of Kith.Signed.Export.key/1, or a list of them")
  end

  defp purpose!(options) do
    with :ok <- Validation.validate(options, purpose: {:custom, &purpose/1}),
         :ok <- purpose(options[:purpose]) do
      options[:purpose]
    else
      {:error, message} -> raise ArgumentError, message
    end
  end

  defp purpose(purpose) when is_binary(purpose) and byte_size(purpose) in 1..255, do: :ok
  defp purpose(_), do: {:error, "expected :purpose to be a string of 1 to 255 bytes"}

  defimpl Inspect do
    def inspect(key, _opts), do: "#Kith.Signed.Export<#{Kernel.inspect(key.id)}>"
  end
end
