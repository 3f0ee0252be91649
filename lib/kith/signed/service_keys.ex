defmodule Kith.Signed.ServiceKeys do
  @moduledoc false
  # The keys of the service itself: made when they are first needed, replaced by rotate/3. Private keys are made in the native
  # library and leave it wrapped.

  alias Kith.{Error, Instance}
  alias Kith.Signed.Transcript
  alias Kith.Store.ServiceKeys, as: Store

  @doc "The current key of a purpose."
  @spec current(Instance.t(), :signing | :agreement) :: {:ok, Store.key()} | {:error, Error.t()}
  def current(instance, purpose) do
    Instance.transaction(instance, fn repo -> {current(instance, repo, purpose), []} end)
  end

  @doc "The same, in the caller's transaction."
  def current(instance, repo, purpose) do
    case Store.current(repo, purpose) do
      nil -> create(instance, repo, purpose)
      key -> {:ok, key}
    end
  end

  # Another process may make one at the same time: the first counts.
  defp create(instance, repo, purpose) do
    with {:ok, key} <- new(instance, purpose, nil) do
      if Store.insert?(repo, purpose, key),
        do: {:ok, key},
        else: {:ok, Store.current(repo, purpose)}
    end
  end

  @doc "A key that may be retired."
  @spec fetch(Instance.t(), :signing | :agreement, String.t()) ::
          {:ok, Store.key()} | {:error, Error.t()}
  def fetch(instance, purpose, key_id) do
    Instance.transaction(instance, fn repo ->
      case Store.fetch(repo, purpose, key_id) do
        nil -> {{:error, Error.new(:key_not_found)}, []}
        key -> {{:ok, key}, []}
      end
    end)
  end

  @doc "All of a purpose, the current one first."
  def all(instance, purpose) do
    Instance.transaction(instance, fn repo ->
      with {:ok, _current} <- current(instance, repo, purpose) do
        {{:ok, Store.all(repo, purpose)}, []}
      else
        error -> {error, []}
      end
    end)
  end

  @doc "Puts a new key, or that of a source, in the place of the current one, which vouches for it."
  def rotate(instance, purpose, source) do
    Instance.transaction(instance, fn repo ->
      old = Store.current(repo, purpose)

      with {:ok, key} <- new(instance, purpose, source),
           {:ok, key} <- endorse(instance, purpose, old, key) do
        if old && not Store.retire?(repo, old.id, Instance.now(instance)),
          do: raise(Error.new(:stale))

        # Undoes the retirement.
        if not Store.insert?(repo, purpose, key), do: raise(taken(repo, purpose, key))
        {{:ok, key}, []}
      else
        error -> {error, []}
      end
    end)
  end

  defp taken(repo, purpose, key) do
    if Store.fetch(repo, purpose, key.id),
      do: Error.new(:duplicate, "the service has had this key"),
      else: Error.new(:stale)
  end

  defp new(instance, purpose, source) do
    case Instance.sealed(instance, :service_key_create, [purpose, source]) do
      {:ok, {public_key, wrapped}} ->
        {:ok,
         %{
           id: id(public_key),
           public_key: public_key,
           wrapped: wrapped,
           created_at: Instance.now(instance),
           retired_at: nil,
           endorsed_by: nil,
           endorsement: nil
         }}

      {:error, {:invalid, message}} ->
        {:error, Error.new(:malformed, message)}

      error ->
        Error.from_native(error)
    end
  end

  defp endorse(instance, :signing, %{} = old, key) do
    with {:ok, signature} <- sign(instance, old, Transcript.endorsement(old.id, key.public_key)),
         do: {:ok, %{key | endorsed_by: old.id, endorsement: signature}}
  end

  defp endorse(_instance, _purpose, _old, key), do: {:ok, key}

  @doc "Signs bytes with a key."
  def sign(instance, key, bytes) do
    instance
    |> Instance.sealed(:signature_create, [{key.public_key, key.wrapped}, bytes])
    |> Error.from_native()
  end

  @doc "The id of a public key, of the service's as of a client's."
  @spec id(binary) :: String.t()
  def id(public_key) do
    :sha256 |> :crypto.hash(public_key) |> binary_part(0, 16) |> Base.encode16(case: :lower)
  end
end
