defmodule Kith.Signed.Registry do
  @moduledoc false
  # Which public keys are whose. A key enters with a proof that somebody has its private key.

  alias Kith.{Error, Instance}
  alias Kith.Signed.{Key, ServiceKeys, Transcript, Verification}
  alias Kith.Store.SignedKeys

  @challenge_lifetime 600_000

  def challenge(instance, owner) do
    challenge = :crypto.strong_rand_bytes(32)
    expires_at = Instance.now(instance) + @challenge_lifetime

    Instance.transaction(instance, fn repo ->
      SignedKeys.put_challenge(repo, owner, challenge, expires_at)
      {{:ok, challenge}, []}
    end)
  end

  def register(instance, owner, public_key, proof, options) do
    now = Instance.now(instance)

    key = %Key{
      id: ServiceKeys.id(public_key),
      owner: owner,
      public_key: public_key,
      permissions: options.permissions,
      created_at: now,
      expires_at: options.expires_at
    }

    with :ok <- possession(instance, key, proof) do
      Instance.transaction(instance, fn repo ->
        with :ok <- take(repo, owner, proof, now),
             :ok <- insert(repo, key) do
          {{:ok, key}, []}
        else
          # So that a challenge that was right may be used once more.
          {:error, error} -> raise error
        end
      end)
    end
  end

  def rotate(instance, old_id, public_key, proof, options) do
    now = Instance.now(instance)

    with {:ok, old} <- fetch(instance, old_id),
         :ok <- Verification.usable(old, now),
         bytes = Transcript.rotation(old.owner, proof.challenge, old_id, public_key),
         new = %Key{
           id: ServiceKeys.id(public_key),
           owner: old.owner,
           public_key: public_key,
           created_at: now,
           expires_at: options.expires_at
         },
         :ok <- Verification.signature(instance, old, bytes, proof.old_signature),
         :ok <- Verification.signature(instance, new, bytes, proof.signature) do
      Instance.transaction(instance, fn repo ->
        # It may have been revoked meanwhile, or have other permissions.
        with %Key{} = old <- SignedKeys.hold(repo, old_id),
             :ok <- Verification.usable(old, now),
             :ok <- take(repo, old.owner, proof, now),
             new = %{new | permissions: old.permissions},
             :ok <- insert(repo, new) do
          SignedKeys.replace(repo, old_id, new.id, ends_at(old, now + options.overlap))
          {{:ok, new}, []}
        else
          nil -> raise Error.new(:key_not_found)
          {:error, error} -> raise error
        end
      end)
    end
  end

  defp ends_at(%{expires_at: nil}, at), do: at
  defp ends_at(%{expires_at: before}, at), do: min(before, at)

  def fetch(instance, key_id), do: change(instance, key_id, fn _repo, key, _now -> key end)

  def revoke(instance, key_id) do
    change(instance, key_id, fn repo, key, now ->
      SignedKeys.revoke(repo, key.id, now)
      %{key | revoked_at: key.revoked_at || now}
    end)
  end

  def permit(instance, key_id, permissions) do
    change(instance, key_id, fn repo, key, _now ->
      SignedKeys.permit(repo, key.id, permissions)
      %{key | permissions: permissions}
    end)
  end

  def of_owner(instance, owner) do
    Instance.transaction(instance, fn repo -> {{:ok, SignedKeys.of_owner(repo, owner)}, []} end)
  end

  defp change(instance, key_id, fun) do
    now = Instance.now(instance)

    Instance.transaction(instance, fn repo ->
      case SignedKeys.fetch(repo, key_id) do
        nil -> {{:error, Error.new(:key_not_found, "no such key is registered")}, []}
        key -> {{:ok, fun.(repo, key, now)}, []}
      end
    end)
  end

  # Bytes that are no key verify nothing: any signature says whether they are one.
  defp possession(instance, key, :operator) do
    case Verification.signature(instance, key, "", <<0::512>>) do
      {:error, %Error{reason: :tampered}} -> :ok
      error -> error
    end
  end

  defp possession(instance, key, %{challenge: challenge, signature: signature}) do
    bytes = Transcript.registration(key.owner, challenge, key.public_key)
    Verification.signature(instance, key, bytes, signature)
  end

  defp take(_repo, _owner, :operator, _now), do: :ok

  defp take(repo, owner, %{challenge: challenge}, now) do
    if SignedKeys.take_challenge?(repo, owner, challenge, now),
      do: :ok,
      else: {:error, Error.new(:stale, "the challenge is unknown, used or too old")}
  end

  defp insert(repo, key) do
    if SignedKeys.insert?(repo, key),
      do: :ok,
      else: {:error, Error.new(:duplicate, "the key was registered before")}
  end
end
