defmodule Kith.MonitorSecretsTest do
  # All that an operator is shown, of one conversation: events, what a monitor counts, the text for Prometheus, alerts, log
  # lines, the page of the dashboard and metrics. No plaintext, no ciphertext and no key is in it, and nobody's name but where
  # the table of events says so.
  use Kith.Case, async: false
  use Kith.Test.Optional, :phoenix

  import ExUnit.CaptureLog
  import Kith.SecretSearch

  alias Kith.{Monitor, Native, Telemetry}
  alias Kith.Test.Dashboard

  @compile {:no_warn_undefined, :telemetry}

  @plaintext "the plaintext of a message that no operator reads"
  @thread "the name of a conversation"
  @people ["anna of nowhere", "ben of nowhere", "cleo of nowhere"]
  @kek Base.decode64!("a2l0aCB0ZXN0IGtleS1lbmNyeXB0aW9uIGtleSAwMSE=")

  # Where the name of a user may be.
  @named [:user_id, :peer_id]

  test "no plaintext, ciphertext or key, and no name beyond the documented ones, is in what an operator is shown" do
    database = Path.join(tmp_dir!(), "kith.db")
    kith = start_kith!(database: database, archive: true)
    test = self()
    :ok = :telemetry.attach_many(test, events_of_the_table(), &__MODULE__.forward/4, test)
    on_exit(fn -> :telemetry.detach(test) end)

    start_supervised!(
      {Monitor,
       instance: kith,
       health_interval: :off,
       clear_after: 0,
       on_alert: &send(test, {:alert, &1}),
       rules: [
         encrypt_slow: [above: 0, minimum_count: 1],
         decrypt_errors: [above: 0, minimum_errors: 1]
       ]}
    )

    :ok = Telemetry.attach_logger(level: :debug, slow: 1)
    on_exit(fn -> Telemetry.detach_logger() end)

    {envelopes, log} =
      with_log(fn ->
        envelopes = converse(kith)
        Monitor.alerts(kith)
        envelopes
      end)

    alerts = received(:alert)
    assert :panic in for(alert <- alerts, do: alert.rule)
    events = received(:event)

    shown = [
      snapshot: inspect(Monitor.snapshot(kith), limit: :infinity, printable_limit: :infinity),
      alerts: inspect(alerts, limit: :infinity, printable_limit: :infinity),
      prometheus: Monitor.prometheus(kith),
      log: log,
      page: Dashboard.render(Dashboard.mount(kith)),
      events: printed(events, &Map.drop(&1, @named)),
      metrics: printed(tagged(events), & &1)
    ]

    with_names = [{:events, printed(events, & &1)}]

    # What is searched is what should be there.
    for {place, expected} <- [
          snapshot: "group_encrypt:",
          alerts: "Kith.Monitor.Alert",
          prometheus: "kith_operation_duration_seconds_bucket",
          log: "decrypt answered tampered",
          page: "tampered",
          events: "plaintext_size:",
          metrics: "kith.session.encrypt"
        ],
        do: assert(shown[place] =~ expected, "no #{expected} in the #{place}")

    assert found?(with_names[:events], hd(@people)), "the search misses a name"

    for {place, text} <- shown,
        name <- [@thread | @people],
        do: refute(found?(text, name), "#{name} is in the #{place}")

    :ok = stop_kith!(kith)
    secrets = read_secrets(database, @kek)
    assert length(secrets) > 50
    bodies = for %{body: body} <- envelopes, piece <- pieces(body), do: {:ciphertext, piece}
    assert length(bodies) > 20
    {_, piece} = hd(bodies)

    assert found?("a line with #{Base.encode64("xx" <> piece)} in it", piece),
           "the search misses a ciphertext"

    hidden = [{:plaintext, @plaintext}, {:key_encryption_key, @kek} | secrets ++ bodies]

    for {kind, secret} <- hidden, {place, text} <- shown ++ with_names do
      refute found?(text, secret), "a #{kind} is in the #{place}"
      refute found?(unbroken(text), secret), "a #{kind} is in the #{place}"
    end
  end

  # Every part of it: a line may show a few bytes.
  defp pieces(body), do: for(<<piece::binary-16 <- body>>, do: piece)

  defp converse(kith) do
    [anna, ben, cleo] = @people
    register!(kith, @people)
    {:ok, [first]} = Kith.encrypt(kith, anna, ben, @plaintext, thread: @thread)
    @plaintext = Kith.decrypt!(kith, ben, first, thread: @thread)
    @plaintext = Kith.decrypt!(kith, ben, first, thread: @thread)
    note = encrypt_one!(kith, anna, anna, @plaintext)
    @plaintext = Kith.decrypt!(kith, anna, note)

    group =
      for {_, {:ok, envelope}} <-
            Kith.encrypt_group!(kith, ben, @people ++ ["nobody"], @plaintext, thread: @thread),
          do: envelope

    for envelope <- group,
        do: @plaintext = Kith.decrypt!(kith, envelope.to, envelope, thread: @thread)

    answer = encrypt_one!(kith, cleo, ben, @plaintext)

    {:error, _} =
      Kith.decrypt(kith, ben, %{answer | body: corrupt(answer.body, byte_size(answer.body) - 3)})

    {:error, _} = Kith.decrypt(kith, anna, answer)
    {:error, _} = Kith.decrypt(kith, ben, <<1, @plaintext>>)
    Kith.delete!(kith, ben, cleo)
    [report] = Kith.recover!(kith, ben, answer, Kith.Error.new(:session_not_found))
    %{envelopes: again} = Kith.resend!(kith, cleo, report)
    Kith.history!(kith, ben, @thread)
    :ok = Native.panic_arm("session_encrypt", 1)
    {:error, %{reason: :panic}} = Kith.encrypt(kith, anna, cleo, @plaintext)
    Kith.health!(kith)
    Kith.maintain!(kith)
    Kith.restored!(kith)
    Kith.shred!(kith, @thread)
    # Data keys that do not open are put back: the secrets to look for are sealed under them.
    data_keys = sql!(kith, "SELECT user_id, data_key FROM signal_accounts")
    sql!(kith, "UPDATE signal_accounts SET data_key = $1", [{:blob, @plaintext}])
    {:error, _} = Kith.encrypt(kith, anna, ben, @plaintext)
    Kith.health!(kith)

    for [user, data_key] <- data_keys do
      sql!(kith, "UPDATE signal_accounts SET data_key = $2 WHERE user_id = $1", [
        user,
        {:blob, data_key}
      ])
    end

    [first, note, answer, report | group ++ again]
  end

  def forward(event, measurements, metadata, pid),
    do: send(pid, {:event, {event, measurements, metadata}})

  defp received(kind) do
    receive do
      {^kind, given} -> [given | received(kind)]
    after
      100 -> []
    end
  end

  defp printed(events, take) do
    for {event, measurements, metadata} <- events, into: "" do
      inspect({event, measurements, take.(metadata)}, limit: :infinity, printable_limit: :infinity) <>
        "\n"
    end
  end

  # What a reporter keeps of each event.
  defp tagged(events) do
    for metric <- Telemetry.metrics(),
        {event, measurements, metadata} <- events,
        metric.event_name == event do
      {Enum.join(metric.name, "."), Map.keys(measurements),
       Map.take(metric.tag_values.(metadata), metric.tags)}
    end
  end

  defp events_of_the_table do
    {:docs_v1, _, _, _, %{"en" => moduledoc}, _, _} = Code.fetch_docs(Telemetry)

    for [_, event] <- Regex.scan(~r/^\| `\[([^\]]+)\]` \|/m, moduledoc),
        do: for(":" <> name <- String.split(event, ", "), do: String.to_atom(name))
  end
end
