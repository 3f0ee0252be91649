defmodule Kith.Doctor do
  @moduledoc false
  # Why a message does not open, and how an instance is, without secrets: what is told are reasons, counters, public keys
  # and whether something is there.

  import Kith.Store.WrappedKey, only: [is_locked: 1]

  alias Kith.{Envelope, Error, Instance, Messages, Migration, Registration}
  alias Kith.KMS.Client
  alias Kith.Store.{Accounts, Prekeys, Repo, Sessions}

  # Rows looked at in one transaction.
  @batch 100

  def message(instance, to, %Envelope{} = envelope) do
    Instance.transaction(instance, fn repo ->
      now = Instance.now(instance)
      reason = outcome(Messages.attempt(instance, repo, to, envelope))
      facts = facts(instance, repo, to, envelope, now)

      report = %{
        opens: reason == nil,
        reason: reason,
        explanation: explain(reason, facts),
        facts: facts
      }

      {{:ok, report}, []}
    end)
  end

  defp outcome(:ok), do: nil
  defp outcome({:error, %Error{reason: reason}}), do: reason

  defp facts(instance, repo, to, envelope, now) do
    base = %{
      envelope: Map.take(envelope, [:from, :to, :type, :version, :timestamp]),
      size: byte_size(envelope.body)
    }

    with true <- envelope.type in [:prekey, :message],
         {:ok, header} <-
           Instance.native(instance, :message_inspect, [envelope.type, envelope.body]),
         {:ok, device} <- Registration.fetch_local(repo, to) do
      session = Sessions.fetch(repo, to, envelope.from)
      info = session_info(instance, repo, {to, device}, envelope.from, session, now)

      Map.merge(base, %{
        message: message_facts(header),
        session: session_facts(session, info),
        chain: chain(info, header.ratchet_key),
        key_stored: key_stored?(repo, to, envelope.from, header),
        prekeys: prekey_facts(repo, to, header),
        base_key_used:
          header.base_key != nil and Prekeys.base_key_used?(repo, to, header.base_key),
        identity: identity_facts(repo, envelope.from, info, header)
      })
    else
      _no_message_or_no_keys -> base
    end
  end

  defp message_facts(header),
    do: %{
      version: header.version,
      counter: header.counter,
      ratchet_key: short(header.ratchet_key)
    }

  # Enough of a public key to compare two lines of a log.
  defp short(<<5, key::binary-4, _::binary>>), do: Base.encode16(key, case: :lower)

  defp session_info(instance, repo, {{user, _} = to, device}, from, session, now) do
    parts = Sessions.peer(session, from, %{archive: Sessions.archive(repo, to, from)})
    Instance.sealed(instance, :session_info, [{user, device.data_key}, to, parts, now])
  end

  defp session_facts(%{generation: 0}, _info), do: :none

  defp session_facts(session, info) do
    opened =
      case info do
        {:ok, %{current: current, archived: archived}} ->
          %{state: if(current, do: :opens, else: :none), archived: length(archived)}

        {:error, reason} ->
          %{state: reason, archived: :unknown}
      end

    session
    |> Map.take([:generation, :established_at, :received_at, :renew_since])
    |> Map.merge(opened)
  end

  # Which chain the ratchet key of the message belongs to.
  defp chain({:ok, %{current: current, archived: archived}}, ratchet_key) do
    receiving? = fn session -> Enum.any?(session.receiving, &(&1.ratchet_key == ratchet_key)) end

    cond do
      current != nil and current.sending.ratchet_key == ratchet_key -> :own
      current != nil and receiving?.(current) -> :current
      Enum.any?(archived, receiving?) -> :archived
      true -> :unknown
    end
  end

  defp chain(_info, _ratchet_key), do: :unknown

  defp key_stored?(repo, to, from, header),
    do: Sessions.entries_at(repo, to, from, header.message_keys) != []

  defp prekey_facts(_repo, _to, %{signed_prekey_id: nil}), do: :none

  defp prekey_facts(repo, to, header) do
    %{
      signed: Prekeys.condition(repo, to, [:signed], header.signed_prekey_id),
      one_time: Prekeys.condition(repo, to, [:one_time], header.prekey_id),
      kyber:
        Prekeys.condition(repo, to, [:kyber_one_time, :kyber_last_resort], header.kyber_prekey_id)
    }
  end

  defp identity_facts(repo, from, info, header) do
    remembered = with {:ok, %{identity_key: key}} <- info, do: key, else: (_ -> nil)
    published = with %{public_key: key} <- Accounts.device(repo, from), do: key

    %{
      remembered: remembered != nil,
      message: compare(header.identity_key, remembered || published),
      published: compare(published, remembered)
    }
  end

  defp compare(nil, _other), do: :unknown
  defp compare(_key, nil), do: :unknown
  defp compare(key, key), do: :same
  defp compare(_key, _other), do: :another

  defp explain(nil, _facts), do: "The message opens."

  defp explain(:duplicate, %{message: %{counter: counter}}),
    do:
      "The key of message #{counter} of this chain was used before or is deleted. It is a second delivery; or the sender's " <>
        "sessions went back to an older state, which Kith.recover/4 tells them when :archive shows that this one was never seen."

  defp explain(:tampered, %{chain: :own}),
    do: "It was made with the ratchet key of this device: a message of this side came back to it."

  defp explain(:tampered, %{chain: :current, key_stored: true}),
    do:
      "Its session and the key of this message are here, and it was changed on its way, or is not what the sender sent."

  defp explain(:tampered, %{chain: chain}) when chain in [:current, :archived],
    do:
      "It belongs to the #{chain} session by its ratchet key, and was changed on its way; or the sender goes on from an older state."

  defp explain(:tampered, _facts),
    do:
      "No session here knows its ratchet key and none opens it: it was changed on its way, or one of the two sides went back " <>
        "to an older state. Kith.recover/4 starts a new session."

  defp explain(:session_not_found, %{session: :none}),
    do:
      "This device has no session with the sender, and the message starts none. Kith.recover/4 asks the sender for it again."

  defp explain(:session_not_found, %{base_key_used: true}),
    do:
      "The message starts a session that existed before and was deleted or replaced. It may be a replay. A message in the other " <>
        "direction, or Kith.recover/4, starts over."

  defp explain(:session_not_found, _facts),
    do: "The session it belongs to is gone. Kith.recover/4 asks the sender for it again."

  defp explain(:unknown_prekey, %{prekeys: prekeys}) when is_map(prekeys) do
    gone = for {kind, :absent} <- Enum.sort(prekeys), do: String.replace("#{kind}", "_", "-")

    "It was made from a prekey that is not held any more (#{Enum.join(gone, ", ")}): the bundle was older than the grace " <>
      "periods, or the device was registered anew. Kith.recover/4 asks the sender to start from a fresh bundle."
  end

  defp explain(:untrusted_identity, %{identity: %{remembered: true}}),
    do:
      "Its identity key is not the one remembered of the sender. If they have a new device, compare safety numbers and Kith.trust/4 it."

  defp explain(:untrusted_identity, _facts),
    do:
      "Its identity key is not the one registered or published for the name it claims to be from."

  defp explain(:corrupted_state, %{session: %{state: :corrupted_state}}),
    do:
      "The stored session does not open: its row was damaged, copied or restored in part. Kith.recover/4 or Kith.reset_session/3 puts it away."

  defp explain(:corrupted_state, _facts),
    do:
      "A sealed row this needs does not open: the device's keys, a prekey, or a kept message key was damaged, copied or restored."

  defp explain(reason, _facts), do: Exception.message(Error.new(reason))

  @doc "How an instance is: `{check, :ok | :warning | :error, sentence}` each."
  def instance(instance) do
    with {:ok, version} <- Migration.migrated_version(instance.repo),
         kms = kms(instance),
         {:ok, accounts} <- accounts(instance, kms),
         {:ok, sessions} <- sessions(instance),
         {:ok, stock} <- stock(instance) do
      {:ok,
       [tables(version)] ++
         kms ++ [keys(accounts), sessions | stock] ++ place(instance.options)}
    end
  end

  defp place(%{database: :memory, repo: nil}),
    do: [{:database, :warning, "it is in memory: all of it is lost when the instance ends"}]

  defp place(_options), do: []

  defp tables(version) do
    wanted = Migration.current_version()

    if version == wanted,
      do: {:tables, :ok, "version #{version}, as this release needs"},
      else: {:tables, :error, "version #{version}, and this release needs #{wanted}"}
  end

  defp kms(%{kms: nil}), do: []

  defp kms(instance) do
    case Client.probe(instance) do
      :ok ->
        [{:kms, :ok, "the key service answers"}]

      {:error, _reason} ->
        [
          {:kms, :error,
           "the key service does not answer: what is not open already gets :unavailable"}
        ]
    end
  end

  # Each would be a call to a service that does not answer.
  defp accounts(_instance, [{:kms, :error, _}]), do: {:ok, :unknown}
  defp accounts(instance, _kms), do: accounts(instance, "", %{opened: 0, failed: %{}})

  defp keys(:unknown), do: {:keys, :error, "not looked at, as the key service does not answer"}

  defp keys(%{opened: opened, failed: failed}) when failed == %{},
    do: {:keys, :ok, "the data keys of #{opened} accounts open"}

  defp keys(%{opened: opened, failed: failed}) do
    why =
      Enum.map_join(Enum.sort(failed), ", ", fn {reason, count} -> "#{count} with #{reason}" end)

    {:keys, :error,
     "the data keys of #{opened} accounts open, others do not: #{why}. Put retired keys back into :keys"}
  end

  # Every account, some at a time.
  defp accounts(instance, after_user, counts) do
    page =
      Instance.transaction(instance, fn repo ->
        {{:ok, Accounts.data_keys(repo, after_user, @batch)}, []}
      end)

    case page do
      {:ok, []} ->
        {:ok, counts}

      {:ok, rows} ->
        counts = Enum.reduce(rows, counts, &count(instance, &1, &2))
        {last, _} = List.last(rows)
        accounts(instance, last, counts)

      {:error, error} ->
        {:error, error}
    end
  end

  # Of a locked account, the outer seal: it is what the keys of the server have of it.
  defp opening(instance, {user, locked}) when is_locked(locked),
    do: Instance.sealed(instance, :account_costs, [user, locked])

  defp opening(instance, account), do: Instance.sealed(instance, :self_seal, [account, ""])

  defp count(instance, account, counts) do
    case opening(instance, account) do
      {:ok, _} -> %{counts | opened: counts.opened + 1}
      {:error, reason} -> update_in(counts, [:failed, reason], &((&1 || 0) + 1))
    end
  end

  defp sessions(instance) do
    Instance.transaction(instance, fn repo ->
      now = Instance.now(instance)
      old = now - instance.options.refresh_after * 1_000

      [[total, renewing, silent]] =
        Repo.rows(
          repo,
          """
          SELECT COUNT(*), COUNT(renew_since),
            COUNT(CASE WHEN established_at < $1 AND COALESCE(received_at, 0) < $2 THEN 1 END)
          FROM kith.signal_sessions WHERE state IS NOT NULL
          """,
          [old, old]
        )

      text =
        "#{total} sessions, of which #{renewing} start anew with their next message, and #{silent} had no message " <>
          "from the peer for longer than :refresh_after"

      {{:ok, {:sessions, if(renewing > 0, do: :warning, else: :ok), text}}, []}
    end)
  end

  defp stock(instance) do
    Instance.transaction(instance, fn repo ->
      below = instance.options.replenish_below
      low = Prekeys.low(repo, below, 5)

      found =
        case low do
          [] ->
            {:prekeys, :ok, "every device has at least #{below} one-time prekeys"}

          low ->
            names =
              Enum.map_join(low, ", ", fn {{user, device}, left} ->
                "#{user}/#{device} has #{left}"
              end)

            {:prekeys, :warning,
             "fewer than #{below} one-time prekeys: #{names}; Kith.replenish/2 makes more"}
        end

      {{:ok, [found]}, []}
    end)
  end
end
