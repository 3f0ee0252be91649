defmodule Kith.Recovery do
  @moduledoc false
  # What two devices do about a message that did not open: the one reports it, the other sends it again in a new session.
  # Reports are not authenticated, so all they cause is bounded, and nothing is sent to anyone but those it was for.

  alias Kith.{
    Envelope,
    Error,
    Instance,
    MessageArchive,
    Messages,
    Registration,
    Telemetry,
    Unlocked
  }

  alias Kith.Store.{Recoveries, Sessions}

  # What may have been lost by one of the two sides.
  @reported [
    :session_not_found,
    :unknown_prekey,
    :tampered,
    :out_of_sync,
    :corrupted_state,
    :duplicate
  ]

  # After these our own session with the sender may be one they cannot follow either.
  @renewed [:tampered, :out_of_sync, :corrupted_state, :duplicate]

  # The latest a database holds. A report is a stranger's word.
  @latest 0x7FFF_FFFF_FFFF_FFFF

  @doc "What a device does about an envelope that did not open: the envelopes to deliver, a report or nothing."
  def recover(instance, to, %Envelope{} = envelope, %Error{reason: reason} = error) do
    from = envelope.from
    metadata = Telemetry.pair(instance, to, from)

    Telemetry.span([:kith, :session, :recover], metadata, fn ->
      result =
        cond do
          envelope.to != to -> malformed("the envelope is addressed to another device")
          envelope.type not in [:prekey, :message] -> {:error, error}
          reason == :duplicate and instance.options.archive == false -> {:ok, []}
          reason in @reported -> report(instance, to, from, envelope, reason)
          true -> {:error, error}
        end

      reports = with {:ok, envelopes} <- result, do: length(envelopes), else: (_ -> 0)
      {result, %{reports: reports}, Map.put(Telemetry.outcome(result), :cause, reason)}
    end)
  end

  defp report(instance, to, from, envelope, reason) do
    Instance.transaction(instance, fn repo ->
      now = Instance.now(instance)

      with {:ok, device} <- Registration.fetch_local(repo, to),
           {:ok, content} <- report_of(instance, envelope),
           true <- Recoveries.allowed?(repo, {to, from, :report}, instance.options, now) do
        if reason in @renewed, do: renew(instance, repo, to, device, from, now)

        report = Envelope.new(to, from, :report, content, now)
        {{:ok, [report]}, []}
      else
        false -> {{:ok, []}, []}
        error -> {error, []}
      end
    end)
  end

  defp report_of(instance, %Envelope{
         type: type,
         body: body,
         timestamp: timestamp,
         from: {_, device}
       }) do
    native(instance, :report_create, [{type, body}, timestamp || 0, device])
  end

  # A state that does not open is in the way of the session the sender is going to start.
  defp renew(instance, repo, {user, _} = local, device, peer, now) do
    session = Sessions.fetch(repo, local, peer)

    case describe(instance, {user, device.data_key}, local, peer, session, now) do
      {:error, %Error{reason: :corrupted_state}} ->
        Sessions.drop_state(repo, local, peer, session.generation, now)

      _session_or_none ->
        Sessions.renew(repo, local, [peer], now)
    end
  end

  @doc """
  What a device does about a report of a message it has sent: a new session where the present one is concerned, and the
  message again, if the archive has it.
  """
  def resend(instance, to, %Envelope{} = report) do
    from = report.from
    metadata = Telemetry.pair(instance, to, from)

    Telemetry.span([:kith, :session, :resend], metadata, fn ->
      result =
        if report.to == to and report.type == :report,
          do: answer(instance, to, from, report),
          else: malformed("this is no report to the device")

      {messages, renewed} =
        case result do
          {:ok, %{envelopes: envelopes, renewed: renewed}} -> {length(envelopes), renewed}
          {:error, _} -> {0, false}
        end

      {result, %{messages: messages}, Map.put(Telemetry.outcome(result), :renewed, renewed)}
    end)
  end

  defp answer(instance, {user, number} = to, from, %Envelope{body: body}) do
    with {:ok, {ratchet_key, timestamp, device}} <- native(instance, :report_parse, [body]),
         :ok <- of_device(device, number) do
      Instance.transaction(instance, fn repo ->
        now = Instance.now(instance)
        answered = %{timestamp: timestamp, renewed: false, envelopes: []}

        with {:ok, local} <- Registration.fetch_local(repo, to),
             :ok <- Unlocked.check(instance, {user, local.data_key}),
             true <- Recoveries.allowed?(repo, {to, from, :resend}, instance.options, now) do
          renewed = renew_concerned(instance, repo, to, local, from, ratchet_key, now)

          with {:ok, envelopes, records} <-
                 again(instance, repo, {to, local}, from, timestamp, now),
               do: {{:ok, %{answered | renewed: renewed, envelopes: envelopes}}, records},
               else: (error -> {error, []})
        else
          false -> {{:ok, answered}, []}
          error -> {error, []}
        end
      end)
    end
  end

  defp of_device(device, device), do: :ok

  defp of_device(_other, _device),
    do: malformed("the report is about a message of another device")

  # Only the chain we still send in: one that is over does no harm any more.
  defp renew_concerned(instance, repo, {user, _} = local, device, peer, ratchet_key, now) do
    session = Sessions.fetch(repo, local, peer)

    case describe(instance, {user, device.data_key}, local, peer, session, now) do
      {:ok, %{current: %{sending: %{ratchet_key: ^ratchet_key}}}} ->
        Sessions.renew(repo, local, [peer], now)
        true

      {:error, %Error{reason: :corrupted_state}} ->
        Sessions.renew(repo, local, [peer], now)
        true

      _another_session_or_none ->
        false
    end
  end

  # The timestamp stays: it is the same message, and should it not open either, it is reported by the same name.
  defp again(instance, repo, {from, _} = owner, to, timestamp, now) do
    oldest = now - instance.options.resend_window * 1_000

    messages =
      if timestamp in oldest..@latest//1,
        do: MessageArchive.sent(instance, repo, owner, timestamp),
        else: []

    texts = for {plaintext, recipients, _thread} <- messages, to in recipients, do: plaintext

    # The sender's copy is there already.
    Enum.reduce_while(texts, {:ok, [], []}, fn plaintext, {:ok, made, records} ->
      case Messages.fan_out_in(instance, repo, from, [to], plaintext, {elem(to, 0), nil}) do
        {{:ok, {[{^to, {:ok, envelope}}], _claimed}}, more} ->
          {:cont, {:ok, made ++ [%{envelope | timestamp: timestamp}], records ++ more}}

        {{:ok, {[{^to, error}], _claimed}}, _records} ->
          {:halt, error}

        {error, _records} ->
          {:halt, error}
      end
    end)
  end

  defp describe(_instance, _account, _local, _peer, %{state: nil}, _now), do: :none

  defp describe(instance, account, local, peer, session, now) do
    # The archived sessions are not asked for.
    parts = Sessions.peer(session, peer, %{archive: []})

    Error.from_native(Instance.sealed(instance, :session_info, [account, local, parts, now]))
  end

  defp native(instance, function, arguments),
    do: Error.from_native(Instance.native(instance, function, arguments))

  defp malformed(why), do: {:error, Error.new(:malformed, why)}
end
