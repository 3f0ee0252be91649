defmodule Kith.FailoverTest do
  # A cluster of its own, since it is stopped, put back and started again.
  use Kith.Case, async: false

  import ExUnit.CaptureLog

  alias Kith.Test.Postgres

  defmodule Repo do
    use Kith.Test.Postgres.Repo
  end

  @moduletag :postgres
  @moduletag timeout: 180_000

  setup do
    cluster = Postgres.start!(settings: [wal_level: "replica"])
    on_exit(fn -> Postgres.remove!(cluster) end)
    start_supervised!({Repo, Postgres.address(cluster)})
    :ok = Kith.Migration.run(Repo)
    kith = start_kith!(repo: Repo)
    other = start_kith!()
    Kith.register!(kith, "anna")
    Kith.register!(other, "ben")
    Kith.publish_bundle!(other, "anna", Kith.pre_key_bundle!(kith, "anna"))
    state = %{cluster: cluster, kith: kith, other: other}
    write(state, "hello")
    envelope = encrypt_one!(other, "ben", "anna", "hi")
    assert Kith.decrypt!(kith, "anna", envelope) == "hi"
    assert %{type: :message} = write(state, "well")
    state
  end

  test "a database that went back in time while Kith ran uses no key twice", state do
    %{cluster: cluster} = state
    data = Path.join(cluster.directory, "data")

    # A backup, or a standby that lags behind.
    Postgres.stop_server!(cluster)
    copy(data, data <> ".before")
    Postgres.start_server!(cluster)
    used = for n <- 1..5, do: header(write(state, "lost #{n}"))

    # What comes next ends the timeline: as a promotion does, and a recovery to a point in time.
    Postgres.stop_server!(cluster)
    File.rm_rf!(data)
    File.rename!(data <> ".before", data)
    copy(Path.join(data, "PG_VERSION"), Path.join(data, "recovery.signal"))
    File.write!(Path.join(data, "postgresql.auto.conf"), "restore_command = 'false'\n", [:append])
    Postgres.start_server!(cluster)

    log =
      capture_log(fn ->
        envelope = write(state, "after the failover")
        assert envelope.type == :prekey
        refute header(envelope) in used
      end)

    assert log =~ "1 sessions start anew"
    refute capture_log(fn -> for n <- 1..3, do: write(state, "#{n}") end) =~ "anew"
    # And not again at the next start.
    stop_kith!(state.kith)

    refute capture_log(fn -> start_kith!(name: state.kith, repo: Repo) end) =~ "anew"
    envelope = encrypt_one!(state.other, "ben", "anna", "good")
    assert Kith.decrypt!(state.kith, "anna", envelope) == "good"
    assert %{type: :message} = write(state, "on we go")
  end

  test "a crash of the server is no failover", state do
    Postgres.kill_server!(state.cluster)
    Postgres.start_server!(state.cluster)
    refute capture_log(fn -> assert %{type: :message} = write(state, "again") end) =~ "anew"
  end

  test "a table that was loaded from a dump is known at the next start", state do
    stop_kith!(state.kith)

    for sql <- [
          "ALTER TABLE signal_sessions RENAME TO dumped",
          "CREATE TABLE signal_sessions (LIKE dumped INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
          "INSERT INTO signal_sessions SELECT * FROM dumped",
          "DROP TABLE dumped",
          "ALTER TABLE signal_sessions ADD PRIMARY KEY (user_id, device_id, peer_id, peer_device_id)"
        ],
        do: {:ok, _} = Repo.query(sql)

    assert capture_log(fn -> start_kith!(name: state.kith, repo: Repo) end) =~ "start anew"
    assert %{type: :prekey} = write(state, "after")
  end

  # The first statements after a server went find dead connections.
  defp write(%{kith: kith, other: other} = state, text, patience \\ 30) do
    with {:ok, _} <- Kith.publish_bundle(kith, "ben", Kith.pre_key_bundle!(other, "ben")),
         {:ok, [envelope]} <- Kith.encrypt(kith, "anna", "ben", text) do
      assert Kith.decrypt!(other, "ben", envelope) == text
      envelope
    else
      {:error, %Kith.Error{reason: :storage}} when patience > 0 ->
        write(state, text, patience - 1)
    end
  end

  # With its owner, who is not whoever runs the tests.
  defp copy(from, to), do: {_, 0} = System.cmd("cp", ["-a", from, to])
end
