defmodule Kith.Signed.Verification do
  @moduledoc false
  # From a map to a message that may be processed. Nothing is written before the signature has been verified.

  alias Kith.{Error, Instance}
  alias Kith.Signed.{Envelope, Key, Message}
  alias Kith.Store.SignedKeys

  # The most that options allow, in milliseconds.
  @max_age 3_600_000
  @max_skew 300_000

  # A nonce is kept for as long as any verification, on a node with any clock that is allowed, could accept its message.
  @lifetime @max_age + 2 * @max_skew

  # :limit counts messages of an hour.
  @window 3_600_000

  @doc "Returns the result, and the id of the key if it is known here."
  def verify(instance, map, options) do
    with {:ok, envelope} <- Envelope.new(map),
         {:ok, key} <- key(instance, envelope.key_id) do
      {verify_by(instance, envelope, key, options), key.id}
    else
      {:error, error} -> {{:error, error}, nil}
    end
  end

  defp verify_by(instance, envelope, key, options) do
    now = Instance.now(instance)

    with :ok <- usable(key, now),
         :ok <- signature(instance, key, Envelope.transcript(envelope), envelope.signature),
         :ok <- audience(envelope, options),
         :ok <- reply(envelope, options),
         :ok <- fresh(envelope, options, now),
         :ok <- once(instance, envelope, options, now) do
      {:ok, message(envelope, key)}
    end
  end

  defp key(instance, key_id) do
    Instance.transaction(instance, fn repo ->
      case SignedKeys.fetch(repo, key_id) do
        nil -> {{:error, Error.new(:key_not_found, "no such key is registered")}, []}
        key -> {{:ok, key}, []}
      end
    end)
  end

  @doc "Whether a key may be used at a time."
  def usable(key, now) do
    case Key.refusal(key, now) do
      nil -> :ok
      refusal -> {:error, Error.new(:key_not_found, "the key #{refused(refusal)}")}
    end
  end

  defp refused(:revoked), do: "is revoked"
  defp refused(:expired), do: "has expired"

  @doc "Verifies a signature of a key."
  def signature(instance, key, bytes, signature) do
    instance
    |> Instance.native(:signature_verify, [key.public_key, bytes, signature])
    |> Error.from_native()
  end

  defp audience(%{audience: audience}, %{audience: audience}), do: :ok

  defp audience(_envelope, _options),
    do: {:error, Error.new(:tampered, "the message is for another audience")}

  defp reply(%{reply_to: reply_to}, %{reply_to: reply_to}), do: :ok

  defp reply(%{reply_to: ""}, _options),
    do: {:error, Error.new(:tampered, "the message is no response")}

  defp reply(_envelope, _options),
    do: {:error, Error.new(:tampered, "the message is a response to something else")}

  defp fresh(%{timestamp: at}, options, now) do
    cond do
      at < now - options.max_age -> {:error, Error.new(:stale, "the message is too old")}
      at > now + options.skew -> {:error, Error.new(:stale, "the message is from the future")}
      true -> :ok
    end
  end

  defp once(_instance, envelope, %{replay: replay}, _now) when is_function(replay, 3) do
    case replay.(envelope.key_id, envelope.nonce, envelope.timestamp + @lifetime) do
      :new ->
        :ok

      :seen ->
        seen()

      # It may hold anything.
      _other ->
        raise ArgumentError, "expected the function in :replay to return :new or :seen"
    end
  end

  defp once(instance, %{key_id: id, nonce: nonce, timestamp: at}, options, now) do
    Instance.transaction(instance, fn repo ->
      count = %{now: now, window: @window, limit: options.limit}

      result =
        cond do
          SignedKeys.seen?(repo, id, nonce) -> seen()
          not SignedKeys.count?(repo, id, count) -> not_counted(repo, id, now)
          not SignedKeys.insert_nonce?(repo, id, nonce, at + @lifetime) -> seen()
          true -> {:ok, :new}
        end

      if result == {:ok, :new}, do: SignedKeys.forget_nonces(repo, id, now)
      {result, []}
    end)
    |> case do
      {:ok, :new} -> :ok
      error -> error
    end
  end

  defp seen, do: {:error, Error.new(:duplicate, "the message was accepted before")}

  # Revoked since it was read, or one too many.
  defp not_counted(repo, id, now) do
    with %Key{} = key <- SignedKeys.fetch(repo, id),
         :ok <- usable(key, now) do
      {:error, Error.new(:busy, "the key has signed as many messages as it may in an hour")}
    else
      nil -> {:error, Error.new(:key_not_found)}
      error -> error
    end
  end

  defp message(envelope, key) do
    %Message{
      payload: envelope.payload,
      key_id: key.id,
      owner: key.owner,
      permissions: key.permissions,
      public_key: key.public_key,
      audience: envelope.audience,
      timestamp: envelope.timestamp,
      nonce: envelope.nonce,
      reply_to: if(envelope.reply_to != "", do: envelope.reply_to)
    }
  end
end
