defmodule Kith.Signed.Envelope do
  @moduledoc false
  # The map of a signed message, as JSON has it, and its fields. One form is accepted: a field that is not signed, or a second
  # spelling of one that is, would be a place to hide something in.

  alias Kith.Error
  alias Kith.Signed.Transcript

  @version 1
  @max_payload 1_048_576
  # Its characters in base64: a longer one is not decoded.
  @max_encoded div(@max_payload + 2, 3) * 4
  @max_text 255
  # What a number of JSON holds exactly everywhere.
  @max_timestamp 9_007_199_254_740_991

  @required ~w(version public_key_id audience timestamp nonce payload signature)
  @all ["reply_to" | @required]

  @enforce_keys [:key_id, :audience, :timestamp, :nonce, :payload]
  defstruct [:key_id, :audience, :timestamp, :nonce, :payload, :signature, reply_to: ""]

  def max_payload, do: @max_payload

  def new(map) when is_map(map) and not is_struct(map) do
    with :ok <- version(map),
         :ok <- fields(map),
         :ok <- size(map["payload"], @max_encoded),
         true <- key_id?(map["public_key_id"]) and text?(map["audience"]),
         true <- is_integer(map["timestamp"]) and map["timestamp"] in 0..@max_timestamp,
         {:ok, <<_::128>> = nonce} <- decode(map["nonce"]),
         {:ok, reply_to} when byte_size(reply_to) in [0, 16] <- decode(map["reply_to"] || ""),
         true <- not Map.has_key?(map, "reply_to") or reply_to != "",
         {:ok, payload} <- decode(map["payload"]),
         :ok <- size(payload, @max_payload),
         {:ok, <<_::512>> = signature} <- decode(map["signature"]) do
      {:ok,
       %__MODULE__{
         key_id: map["public_key_id"],
         audience: map["audience"],
         timestamp: map["timestamp"],
         nonce: nonce,
         reply_to: reply_to,
         payload: payload,
         signature: signature
       }}
    else
      {:error, error} -> {:error, error}
      _ -> {:error, Error.new(:malformed)}
    end
  end

  def new(_other), do: {:error, Error.new(:malformed)}

  @doc "The bytes that are signed."
  def transcript(%__MODULE__{} = e),
    do: Transcript.message(e.key_id, e.audience, e.timestamp, e.nonce, e.reply_to, e.payload)

  @doc "The map."
  def to_map(%__MODULE__{} = e) do
    map = %{
      "version" => @version,
      "public_key_id" => e.key_id,
      "audience" => e.audience,
      "timestamp" => e.timestamp,
      "nonce" => Base.encode64(e.nonce),
      "payload" => Base.encode64(e.payload),
      "signature" => Base.encode64(e.signature)
    }

    if e.reply_to == "", do: map, else: Map.put(map, "reply_to", Base.encode64(e.reply_to))
  end

  @doc "Whether this may be an id of a key."
  def key_id?(id), do: is_binary(id) and id =~ ~r/\A[0-9a-f]{32}\z/

  @doc "Whether this may be an owner, an audience or a permission."
  def text?(text),
    do:
      is_binary(text) and byte_size(text) in 1..@max_text and String.valid?(text) and
        not String.contains?(text, ["\0", "\n"])

  @doc "Base64 with padding, in its one spelling."
  def decode(text) when is_binary(text) do
    with {:ok, bytes} <- Base.decode64(text),
         true <- Base.encode64(bytes) == text do
      {:ok, bytes}
    else
      _ -> :error
    end
  end

  def decode(_other), do: :error

  defp version(%{"version" => @version}), do: :ok

  defp version(%{"version" => version}) when is_integer(version),
    do: {:error, Error.new(:unsupported_version)}

  defp version(_), do: :error

  defp fields(map) do
    keys = Map.keys(map)
    if keys -- @all == [] and @required -- keys == [], do: :ok, else: :error
  end

  defp size(payload, limit) when byte_size(payload) > limit, do: {:error, too_large()}
  defp size(_payload, _limit), do: :ok

  def too_large, do: Error.new(:too_large, "a payload has at most #{@max_payload} bytes")
end
