defmodule Kith.Monitor.RulesTest do
  use ExUnit.Case, async: true

  import Kith.Test.MonitorEvents

  alias Kith.Monitor.{Counts, Rules}

  @stock %{
    devices: 3,
    low: 2,
    one_time: 40,
    kyber_one_time: 8,
    signed_age: 60,
    last_resort_age: 90
  }

  setup do
    %{counts: Counts.new(:family, self())}
  end

  # {rule, message} of each that fires.
  defp firing(counts, given \\ []) do
    {:ok, rules} = Rules.resolve(given)
    snapshot = Counts.read(counts)
    for {name, _severity, check} <- rules, message = check.(snapshot), do: {name, message}
  end

  defp names(counts, given \\ []), do: Keyword.keys(firing(counts, given))

  test "nothing fires where nothing happened, nor where all is well", %{counts: counts} do
    assert [] = firing(counts)
    operation(counts, :encrypt, 900, nil, 1_000)
    operation(counts, :decrypt, 900, nil, 1_000)
    operation(counts, :decrypt, 900, :duplicate, 1_000)
    health(counts, :ok, :ok)
    total(counts, @stock, true)
    maintenance(counts, :replenish, %{count: 2})
    assert [] = firing(counts)
  end

  test "encrypt is slow when more than one of a hundred takes longer than 100 ms, and not before there are 20",
       %{
         counts: counts
       } do
    operation(counts, :encrypt, 150_000, nil, 19)
    assert [] = names(counts)
    operation(counts, :encrypt, 150_000)
    assert [encrypt_slow: message] = firing(counts)
    assert message == "P99 of encrypt is 149.5 ms, of 20 calls lately; the limit is 100 ms"

    assert [] = names(counts, encrypt_slow: [above: 200])
    assert [] = names(counts, encrypt_slow: [minimum_count: 21])
    assert [] = names(counts, encrypt_slow: false)

    # One of a hundred is not more than one of a hundred.
    other = Counts.new(:family, self())
    operation(other, :encrypt, 1_000, nil, 99)
    operation(other, :encrypt, 150_000)
    assert [] = names(other)
    operation(other, :encrypt, 150_000)
    assert [:encrypt_slow] = names(other)
  end

  test "a group that takes its time is not slow", %{counts: counts} do
    operation(counts, :group_encrypt, 900_000, nil, 100)
    assert [] = names(counts)
  end

  test "messages do not open when more than 1 % of them fail, and not for one of one", %{
    counts: counts
  } do
    operation(counts, :decrypt, 10, :tampered, 4)
    assert [] = names(counts)
    operation(counts, :decrypt, 10, :session_not_found)
    assert [decrypt_errors: message] = firing(counts)

    assert message ==
             "100 % of messages did not open lately (4 tampered, 1 session_not_found); the limit is 1 %"

    operation(counts, :decrypt, 10, nil, 495)
    assert [] = names(counts)
    assert [:decrypt_errors] = names(counts, decrypt_errors: [above: 0.005])
    operation(counts, :decrypt, 10, :storage)
    assert [:decrypt_errors] = names(counts)
  end

  test "second deliveries and locked accounts alone never are an alarm", %{counts: counts} do
    operation(counts, :decrypt, 10, :duplicate, 1_000)
    operation(counts, :decrypt, 10, :locked, 1_000)
    assert [] = names(counts)
  end

  test "one panic, one restored database, one session without a prekey and one failed task are enough",
       %{
         counts: counts
       } do
    event(counts, [:nif, :panic], %{count: 1})
    assert [panic: "panics of the engine lately: 1"] = firing(counts)
    event(counts, [:installation, :restored], %{sessions: 1})
    event(counts, [:prekeys, :claim, :stop], %{count: 0}, %{result: :ok})
    maintenance(counts, :rotate, %{}, %{result: :error})
    assert [:panic, :prekeys_exhausted, :restored, :maintenance_failed] = names(counts)
    for _ <- 1..11, do: Counts.turn(counts)
    assert [] = names(counts)
  end

  test "a store and a vault that are not well, and an instance that stopped, which is told once",
       %{counts: counts} do
    health(counts, :storage, :ok)

    assert [store_unhealthy: "the database does not answer: storage, after 1.5 ms"] =
             firing(counts)

    health(counts, :ok, :key_not_found)
    assert [vault_unhealthy: "data keys do not open: key_not_found"] = firing(counts)
    Counts.not_running(counts)
    assert [store_unhealthy: "the instance is not running"] = firing(counts)
  end

  test "devices are low when maintenance could not help, and published ones when asked for", %{
    counts: counts
  } do
    total(counts, @stock, true)
    maintenance(counts, :replenish, %{count: 0, failed: 2})
    assert [:prekeys_low, :maintenance_failed] = names(counts)

    other = Counts.new(:family, self())
    total(other, @stock, false)
    maintenance(other, :replenish, %{})
    assert [] = names(other)
    assert [prekeys_low: message] = firing(other, prekeys_low: [published: true])
    assert message =~ "2 devices with keys of their own"
  end

  test "rules are changed, turned off, replaced and added", %{counts: counts} do
    assert {:ok, rules} = Rules.resolve([])

    assert for({name, severity, _} <- rules, do: {name, severity}) ==
             for({name, settings} <- Rules.ready(), do: {name, settings[:severity]})

    own = fn %{counts: %{panics: %{total: total}}} -> "#{total} panics" end
    given = [panic: [severity: :warning, check: own], restored: false, of_mine: [check: own]]
    assert {:ok, rules} = Rules.resolve(given)
    assert {:panic, :warning, ^own} = List.keyfind(rules, :panic, 0)
    assert {:of_mine, :warning, ^own} = List.last(rules)
    refute List.keymember?(rules, :restored, 0)
    assert [panic: "0 panics", of_mine: "0 panics"] = firing(counts, given)
  end

  test "wrong rules are refused with a sentence that says what is wrong" do
    for {given, message} <- [
          {:all, "expected :rules to be a keyword list"},
          {[encrypt_slow: [over: 1]], "in :rules, :encrypt_slow: unknown option :over"},
          {[encrypt_slow: [above: "1"]], "expected :above to be a number from 0"},
          {[encrypt_slow: [minimum_errors: 1]], "did you mean :minimum_count?"},
          {[panic: [severity: :bad]], "expected :severity to be one of :critical, :warning"},
          {[panic: true], "in :rules, :panic: expected options to be a keyword list"},
          {[panik: [above: 1]], "in :rules, :panik: unknown option :above"},
          {[panik: []],
           "expected a rule of your own to have :check, the ready ones are :encrypt_slow"},
          {[mine: [check: fn -> nil end]], "expected :check to be a function of a snapshot"}
        ] do
      assert {:error, said} = Rules.resolve(given)
      assert said =~ message
    end
  end

  test "the table of the documentation is that of the rules" do
    {:docs_v1, _, _, _, %{"en" => moduledoc}, _, _} = Code.fetch_docs(Kith.Monitor)

    table =
      for [_, rule, settings, severity] <-
            Regex.scan(~r/^\| `:(\w+)` \| [^|]+ \|(?: `([^`|]+)`)? \| `:(\w+)` \|$/m, moduledoc) do
        {settings, _} = Code.eval_string("[#{settings}]")

        {String.to_existing_atom(rule),
         Enum.sort([{:severity, String.to_existing_atom(severity)} | settings])}
      end

    assert table == for({rule, settings} <- Rules.ready(), do: {rule, Enum.sort(settings)})
  end
end
