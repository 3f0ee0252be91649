defmodule Kith.Envelope do
  @moduledoc """
  One encrypted message from one device to one device, ready to be stored or sent.

  | field | |
  | --- | --- |
  | `from`, `to` | `{user, device}` |
  | `type` | `:prekey` (starts a session), `:message` (goes on in one), `:self` (a note sealed with the account's key), `:report` (says that a message did not open, see `Kith.recover/4`) |
  | `body` | the bytes of the Signal message, of the sealed note, or of the report, which is not encrypted |
  | `version` | of the Signal protocol: 4 or 3; of the sealed note's format for `:self`; 0 for `:report` |
  | `timestamp` | when it was made, in milliseconds since 1970; by it a report names the message. `nil` when unknown |
  | `session_id` | 16 bytes, known only where the envelope was made: neither form below carries it |

  `body` is exactly what a Signal client makes and reads. The fields around it tell where to deliver
  it and are not protected: a changed sender or recipient leads to an error in `Kith.decrypt/3`, never to
  another plaintext.

  ## Forms

  `to_binary/1` and `to_map/1` give the same fields in bytes and in a map of strings and integers that any
  JSON library takes. Their counterparts parse what a stranger sent: they are strict, take at most
  1 MiB and 4 KiB of body and answer `{:error, %Kith.Error{reason: :malformed}}`.

      format version (1) ‖ type (1) ‖ timestamp (8, big-endian, 0 when unknown) ‖
      length of from (1) ‖ from ‖ device (1) ‖ length of to (1) ‖ to ‖ device (1) ‖
      length of body (4, big-endian) ‖ body

  The format version is 1. The type is 1 for `:message`, 2 for `:self`, 3 for `:prekey`, 4 for `:report`.
  """

  alias Kith.{Address, Error}

  @format 1
  @types %{message: 1, self: 2, prekey: 3, report: 4}
  @codes Map.new(@types, fn {type, code} -> {code, type} end)
  @names Map.new(@types, fn {type, _} -> {Atom.to_string(type), type} end)

  # The longest plaintext, 1 MiB, with room for padding and for the outer fields of a first message, those of
  # version 4 included.
  # Milliseconds that a signed integer of 64 bits holds, as databases have it.
  @max_timestamp 0x7FFF_FFFF_FFFF_FFFF
  @max_body 1_048_576 + 4_096

  @enforce_keys [:from, :to, :type, :body, :version]
  defstruct [:from, :to, :type, :body, :version, :timestamp, :session_id]

  @type type :: :prekey | :message | :self | :report

  @type t :: %__MODULE__{
          from: Address.t(),
          to: Address.t(),
          type: type,
          body: binary,
          version: non_neg_integer,
          timestamp: nil | pos_integer,
          session_id: nil | <<_::128>>
        }

  @doc """
  Returns an envelope around a message that was made elsewhere, for example by a Signal client.

      iex> envelope = Kith.Envelope.new("anna", {"ben", 2}, :message, <<0x33, 1, 2, 3>>)
      iex> {envelope.to, envelope.version}
      {{"ben", 2}, 3}

  The timestamp is the sender's, where the service that brought the message has one. Raises `ArgumentError` for a wrong
  type or timestamp, an empty body or one over 1 MiB and 4 KiB.
  """
  @spec new(Address.given(), Address.given(), type, binary, nil | pos_integer) :: t
  def new(from, to, type, body, timestamp \\ nil) do
    case build(Address.new!(from), Address.new!(to), type, body, timestamp) do
      {:ok, envelope} ->
        envelope

      :error ->
        raise ArgumentError,
              "expected a type of :prekey, :message, :report or :self (from and to the same user), a body of " <>
                "1 to #{@max_body} bytes and a timestamp above 0 or nil, got: #{inspect(type)} and #{size(body)}"
    end
  end

  @doc "Returns the envelope in bytes, as in the layout above."
  @spec to_binary(t) :: binary
  def to_binary(%__MODULE__{from: {from, from_device}, to: {to, to_device}} = envelope) do
    <<@format, Map.fetch!(@types, envelope.type), envelope.timestamp || 0::64, byte_size(from),
      from::binary, from_device, byte_size(to), to::binary, to_device,
      byte_size(envelope.body)::32, envelope.body::binary>>
  end

  @doc """
  Parses what `to_binary/1` made.

  A format version this release does not know is `:unsupported_version`, anything else that is wrong is
  `:malformed`.
  """
  @spec from_binary(binary) :: {:ok, t} | {:error, Error.t()}
  def from_binary(
        <<@format, code, timestamp::64, from_size, from::binary-size(from_size), from_device,
          to_size, to::binary-size(to_size), to_device, size::32, body::binary-size(size)>>
      ) do
    with {:ok, from} <- Address.parse({from, from_device}),
         {:ok, to} <- Address.parse({to, to_device}),
         {:ok, envelope} <- build(from, to, @codes[code], body, known(timestamp)) do
      # A sub-binary would keep the whole packet it came in alive.
      {:ok, %{envelope | body: :binary.copy(body)}}
    else
      :error -> {:error, Error.new(:malformed)}
    end
  end

  def from_binary(<<format, _::binary>>) when format != @format,
    do: {:error, Error.new(:unsupported_version)}

  def from_binary(bytes) when is_binary(bytes), do: {:error, Error.new(:malformed)}
  def from_binary(other), do: raise(ArgumentError, "expected a binary, got: #{inspect(other)}")

  @doc """
  Returns the envelope as a map with string keys, the body in Base64.

      iex> Kith.Envelope.to_map(Kith.Envelope.new("anna", "ben", :message, <<0x33, 1, 2, 3>>))
      %{
        "format" => 1,
        "type" => "message",
        "from" => "anna",
        "from_device" => 1,
        "to" => "ben",
        "to_device" => 1,
        "timestamp" => 0,
        "body" => "MwECAw=="
      }
  """
  @spec to_map(t) :: %{String.t() => String.t() | integer}
  def to_map(%__MODULE__{from: {from, from_device}, to: {to, to_device}} = envelope) do
    %{
      "format" => @format,
      "type" => Atom.to_string(envelope.type),
      "from" => from,
      "from_device" => from_device,
      "to" => to,
      "to_device" => to_device,
      "timestamp" => envelope.timestamp || 0,
      "body" => Base.encode64(envelope.body)
    }
  end

  @doc """
  Parses what `to_map/1` made, after a trip through JSON. Other keys are ignored.
  """
  @spec from_map(map) :: {:ok, t} | {:error, Error.t()}
  def from_map(%{
        "format" => @format,
        "type" => type,
        "from" => from,
        "from_device" => from_device,
        "to" => to,
        "to_device" => to_device,
        "timestamp" => timestamp,
        "body" => body
      }) do
    with {:ok, from} <- Address.parse({from, from_device}),
         {:ok, to} <- Address.parse({to, to_device}),
         {:ok, body} <- decode(body),
         {:ok, envelope} <- build(from, to, @names[type], body, known(timestamp)) do
      {:ok, envelope}
    else
      :error -> {:error, Error.new(:malformed)}
    end
  end

  def from_map(%{"format" => format}) when is_integer(format) and format != @format,
    do: {:error, Error.new(:unsupported_version)}

  def from_map(map) when is_map(map), do: {:error, Error.new(:malformed)}
  def from_map(other), do: raise(ArgumentError, "expected a map, got: #{inspect(other)}")

  @doc """
  Returns the fields of a row of `message_encryption`, but for the `message_id` that only the application
  knows.

  `:session_id` is a UUID in text, or `nil` where the envelope was not made here. `:metadata` has string
  keys and takes any extra ones.

      iex> Kith.Envelope.metadata(Kith.Envelope.new("anna", "ben", :message, <<0x33, 1, 2, 3>>))
      %{
        encrypted: true,
        protocol: "signal",
        version: 3,
        session_id: nil,
        sender_device_id: 1,
        metadata: %{
          "type" => "message",
          "sender_id" => "anna",
          "recipient_id" => "ben",
          "recipient_device_id" => 1,
          "size" => 4
        }
      }
  """
  @spec metadata(t, extra :: map) :: map
  def metadata(%__MODULE__{} = envelope, extra \\ %{}) do
    {from, from_device} = envelope.from
    {to, to_device} = envelope.to

    %{
      encrypted: true,
      protocol: if(envelope.type == :self, do: "kith", else: "signal"),
      version: envelope.version,
      session_id: uuid(envelope.session_id),
      sender_device_id: from_device,
      metadata:
        Map.merge(extra, %{
          "type" => Atom.to_string(envelope.type),
          "sender_id" => from,
          "recipient_id" => to,
          "recipient_device_id" => to_device,
          "size" => byte_size(envelope.body)
        })
    }
  end

  @doc false
  def uuid(nil), do: nil

  def uuid(<<_::128>> = id) do
    <<a::binary-8, b::binary-4, c::binary-4, d::binary-4, e::binary-12>> =
      Base.encode16(id, case: :lower)

    Enum.join([a, b, c, d, e], "-")
  end

  @doc false
  # Sizes of what a stranger sent are safe to print, the bytes are not.
  def size(body) when is_binary(body), do: "#{byte_size(body)} bytes"
  def size(_), do: "no binary"

  # A note goes from a user to themselves by definition; anything else was put together by hand.
  defp build({from, _}, {to, _}, :self, _body, _timestamp) when from != to, do: :error

  defp build(from, to, type, body, timestamp)
       when is_map_key(@types, type) and is_binary(body) and byte_size(body) in 1..@max_body and
              (timestamp == nil or (is_integer(timestamp) and timestamp in 1..@max_timestamp)) do
    {:ok,
     %__MODULE__{
       from: from,
       to: to,
       type: type,
       body: body,
       version: version(type, body),
       timestamp: timestamp
     }}
  end

  defp build(_, _, _, _, _), do: :error

  # Signal writes the version of the message into the high half of its first byte.
  defp version(:self, <<version, _::binary>>), do: version
  defp version(:report, _body), do: 0
  defp version(_, <<version::4, _::4, _::binary>>), do: version

  defp known(0), do: nil
  # nil is how an unknown one is written here only.
  defp known(nil), do: :unknown
  defp known(timestamp), do: timestamp

  # The length is checked first, so that a long string costs nothing.
  defp decode(text) when is_binary(text) and byte_size(text) <= div(@max_body + 2, 3) * 4,
    do: Base.decode64(text)

  defp decode(_), do: :error

  defimpl Inspect do
    def inspect(envelope, _opts) do
      {from, from_device} = envelope.from
      {to, to_device} = envelope.to

      "#Kith.Envelope<#{envelope.type} v#{envelope.version} from #{Kernel.inspect(from)}/#{from_device} " <>
        "to #{Kernel.inspect(to)}/#{to_device}, #{Kith.Envelope.size(envelope.body)}>"
    end
  end
end
