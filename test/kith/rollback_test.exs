defmodule Kith.RollbackTest do
  # What it logs is not to be heard in other tests.
  use Kith.Case, async: false

  import ExUnit.CaptureLog
  alias Kith.Envelope

  setup do
    kith = start_kith!(archive: true)
    converse!(kith, "anna", "ben")
    %{kith: kith}
  end

  describe "a session that is older than what was sent in it" do
    test "and that a late message makes the current one again sends no more", %{kith: kith} do
      assert send!(kith, "ben", "anna", "a chain that anna knows")
      before = rows_of(kith, "anna")
      used = for n <- 1..3, do: header(encrypt_one!(kith, "anna", "ben", "lost #{n}"))
      # Of the chain anna knows, on its way while her database is restored.
      late = encrypt_one!(kith, "ben", "anna", "late")
      put_back(kith, "anna", before)
      capture_log(fn -> assert %{sessions: _} = Kith.restored!(kith) end)

      assert %{type: :prekey} = encrypt_one!(kith, "anna", "ben", "anew")
      assert Kith.decrypt!(kith, "anna", late) == "late"
      refute header(encrypt_one!(kith, "anna", "ben", "after")) in used
    end

    test "nor after it was put away before the backup", %{kith: kith} do
      assert send!(kith, "ben", "anna", "a chain that anna knows")
      Kith.reset_session!(kith, "anna", "ben")
      before = rows_of(kith, "anna")
      assert Kith.decrypt!(kith, "anna", encrypt_one!(kith, "ben", "anna", "x")) == "x"
      late = encrypt_one!(kith, "ben", "anna", "late")
      used = for n <- 1..3, do: header(encrypt_one!(kith, "anna", "ben", "lost #{n}"))
      put_back(kith, "anna", before)
      capture_log(fn -> Kith.restored!(kith) end)
      assert Kith.decrypt!(kith, "anna", late) == "late"
      refute header(encrypt_one!(kith, "anna", "ben", "after")) in used
    end
  end

  test "a prekey of a client is handed out once, whatever became of the database", %{kith: kith} do
    other = start_kith!()
    register!(other, ["cleo"])
    bundle = Kith.pre_key_bundle!(other, "cleo")
    Kith.publish_bundle!(kith, "cleo", bundle)
    assert Kith.prekey_count!(kith, "cleo") == 1
    capture_log(fn -> Kith.restored!(kith) end)
    assert %{prekey: nil} = Kith.pre_key_bundle!(kith, "cleo")
  end

  test "archived sessions do not grow without end", %{kith: kith} do
    Kith.replenish!(kith, "ben")

    for n <- 1..60 do
      sql!(kith, "UPDATE signal_sessions SET renew_since = 1 WHERE user_id = 'anna'")
      encrypt_one!(kith, "anna", "ben", "#{n}")
    end

    [[count]] = sql!(kith, "SELECT COUNT(*) FROM signal_archived_sessions WHERE user_id = 'anna'")
    assert count <= 40
  end

  test "a report of a time no database holds is answered", %{kith: kith} do
    for timestamp <- [0xFFFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000] do
      envelope = encrypt_one!(kith, "anna", "ben", "x")

      {:ok, content} = Kith.Native.report_create({envelope.type, envelope.body}, timestamp, 1)

      report = Envelope.new("ben", "anna", :report, content)
      assert {:ok, %{envelopes: []}} = Kith.resend(kith, "anna", report)
    end
  end
end

defmodule Kith.RollbackPostgresTest do
  use Kith.Case, async: false
  @moduletag :postgres

  import ExUnit.CaptureLog
  alias Kith.Migration
  alias Kith.Test.Postgres

  defmodule Repo do
    use Kith.Test.Postgres.Repo
  end

  setup do
    address = Postgres.database!(Postgres.cluster(), "rollback_test")
    start_supervised!({Repo, address ++ [pool_size: 20]})
    Repo.intercept(fn _sql, run -> run.() end)
    prefix = "kith_#{System.unique_integer([:positive])}"
    :ok = Migration.run(Repo, prefix: prefix)
    kith = start_kith!(repo: Repo, prefix: prefix)
    converse!(kith, "anna", "ben")
    register!(kith, ["cleo"])
    assert %{type: :message} = encrypt_one!(kith, "anna", "ben", "the timeline was looked at")
    %{kith: kith}
  end

  # What a node finds after a failover: the mark of before in a database that goes on in another timeline.
  defp fail_over(kith) do
    1 =
      sql!(
        kith,
        "UPDATE signal_installation SET mark = split_part(mark, '/', 1) || '/000000FF/' || split_part(mark, '/', 3)"
      )
  end

  test "a failover that was heard of in a transaction that was rolled back is heard of again", %{
    kith: kith
  } do
    fail_over(kith)

    capture_log(fn ->
      undone!(kith, fn ->
        assert {:ok, _} = Kith.encrypt(kith, "anna", "ben", "x")
        assert {:ok, _} = Kith.encrypt(kith, "anna", "cleo", "x")
      end)

      assert %{type: :prekey} = encrypt_one!(kith, "anna", "ben", "x")
    end)
  end

  test "a database whose mark says another timeline is noticed however often that number was seen",
       %{kith: kith} do
    fail_over(kith)
    capture_log(fn -> assert %{type: :prekey} = encrypt_one!(kith, "anna", "ben", "x") end)
    assert %{type: :prekey} = envelope = encrypt_one!(kith, "anna", "ben", "x")
    Kith.decrypt!(kith, "ben", envelope)
    send!(kith, "ben", "anna", "x")
    assert %{type: :message} = encrypt_one!(kith, "anna", "ben", "x")
    fail_over(kith)
    capture_log(fn -> assert %{type: :prekey} = encrypt_one!(kith, "anna", "ben", "x") end)
  end

  test "a session that is replaced while a message is opened in it still opens what comes late",
       %{
         kith: kith
       } do
    test = self()
    revision = fn -> sql!(kith, "SELECT revision FROM signal_braids WHERE user_id = 'anna'") end

    opens = fn envelope ->
      undone!(kith, fn -> Kith.decrypt!(kith, "anna", envelope) && revision.() end)
    end

    # Until a message comes that turns the braid.
    turns =
      Enum.find_value(1..200, fn n ->
        envelope = encrypt_one!(kith, "ben", "anna", "#{n}")

        if opens.(envelope) != revision.() do
          envelope
        else
          Kith.decrypt!(kith, "anna", envelope)
          send!(kith, "anna", "ben", "#{n}")
          nil
        end
      end)

    late = for n <- 1..3, do: encrypt_one!(kith, "ben", "anna", "late #{n}")
    before = revision.()
    sql!(kith, "UPDATE signal_sessions SET renew_since = 1 WHERE user_id = 'anna'")

    opening =
      Task.async(fn ->
        Repo.transaction(fn ->
          Kith.decrypt!(kith, "anna", turns)
          send(test, {:opened, revision.()})

          receive do
            :commit -> :ok
          end
        end)
      end)

    assert_receive {:opened, turned}, 60_000
    assert turned != before

    Repo.intercept(fn sql, run ->
      if sql =~ "FOR UPDATE OF s", do: send(test, :waits)
      run.()
    end)

    writing = Task.async(fn -> encrypt_one!(kith, "anna", "ben", "anew") end)
    assert_receive :waits, 60_000
    Process.sleep(300)
    send(opening.pid, :commit)
    Task.await(opening, 60_000)
    assert %{type: :prekey} = Task.await(writing, 60_000)
    for envelope <- late, do: assert({:ok, _} = Kith.decrypt(kith, "anna", envelope))
  end
end
