defmodule Kith.Monitor.Rules do
  @moduledoc false
  # Rules as functions of a snapshot: nil, or a sentence about what is wrong.

  alias Kith.Validation

  @ready [
    encrypt_slow: [severity: :warning, above: 100, minimum_count: 20],
    decrypt_errors: [severity: :warning, above: 0.01, minimum_errors: 5],
    panic: [severity: :critical, above: 0],
    store_unhealthy: [severity: :critical],
    vault_unhealthy: [severity: :critical],
    prekeys_low: [severity: :warning, above: 0, published: false],
    prekeys_exhausted: [severity: :warning, above: 0],
    restored: [severity: :warning, above: 0],
    maintenance_failed: [severity: :warning, above: 0]
  ]

  @type rule :: {atom, Kith.Monitor.Alert.severity(), (map -> nil | String.t())}

  @doc "The rules there are without any option."
  def ready, do: @ready

  @doc "The rules that hold, of what was given in `:rules`."
  @spec resolve(term) :: {:ok, [rule]} | {:error, String.t()}
  def resolve(given) do
    if Keyword.keyword?(given),
      do: resolve_each(given),
      else: {:error, "expected :rules to be a keyword list"}
  end

  defp resolve_each(given) do
    own = for {name, settings} <- given, not Keyword.has_key?(@ready, name), do: {name, settings}
    all = for({name, _} <- @ready, do: {name, Keyword.get(given, name, [])}) ++ own

    Enum.reduce_while(all, {:ok, []}, fn {name, settings}, {:ok, rules} ->
      case rule(name, settings) do
        :off -> {:cont, {:ok, rules}}
        {:ok, rule} -> {:cont, {:ok, rules ++ [rule]}}
        {:error, message} -> {:halt, {:error, "in :rules, #{inspect(name)}: " <> message}}
      end
    end)
  end

  defp rule(_name, false), do: :off

  defp rule(name, settings) do
    ready = Keyword.get(@ready, name)

    with :ok <- Validation.validate(settings, schema(ready)),
         :ok <- check_given(ready, settings) do
      settings = Keyword.merge(ready || [severity: :warning], settings)
      check = settings[:check] || (&check(name, settings, &1))
      {:ok, {name, settings[:severity], check}}
    end
  end

  defp check_given(nil, settings) do
    if settings[:check],
      do: :ok,
      else:
        {:error,
         "expected a rule of your own to have :check, the ready ones are " <>
           Enum.map_join(Keyword.keys(@ready), ", ", &inspect/1)}
  end

  defp check_given(_ready, _settings), do: :ok

  defp schema(ready) do
    types = [
      severity: {:one_of, [:critical, :warning]},
      above: {:custom, &above/1},
      minimum_count: {:integer, 1..1_000_000_000},
      minimum_errors: {:integer, 1..1_000_000_000},
      published: {:one_of, [true, false]},
      check: {:custom, &function/1}
    ]

    Keyword.take(types, [:check | Keyword.keys(ready || [severity: nil])])
  end

  defp above(number) when is_number(number) and number >= 0, do: :ok
  defp above(other), do: {:error, "expected :above to be a number from 0, got: #{inspect(other)}"}

  defp function(fun) when is_function(fun, 1), do: :ok

  defp function(other),
    do: {:error, "expected :check to be a function of a snapshot, got: #{inspect(other)}"}

  defp check(:encrypt_slow, settings, %{operations: %{encrypt: %{window: window}}}) do
    if window.count >= settings[:minimum_count] and window.p99 > settings[:above],
      do:
        "P99 of encrypt is #{ms(window.p99)} ms, of #{window.count} calls lately; the limit is " <>
          "#{ms(settings[:above])} ms"
  end

  defp check(:decrypt_errors, settings, %{operations: %{decrypt: %{window: window}}}) do
    if window.errors >= settings[:minimum_errors] and window.error_rate > settings[:above] do
      reasons =
        window.reasons
        |> Enum.sort_by(fn {_reason, count} -> -count end)
        |> Enum.map_join(", ", fn {reason, count} -> "#{count} #{reason}" end)

      "#{percent(window.error_rate)} % of messages did not open lately (#{reasons}); the limit is " <>
        "#{percent(settings[:above])} %"
    end
  end

  defp check(:panic, settings, snapshot),
    do: counted(snapshot, :panics, settings, "panics of the engine lately: %{count}")

  defp check(:store_unhealthy, _settings, %{health: health}) do
    case health.store do
      good when good in [:ok, :unknown] -> nil
      :not_running -> "the instance is not running"
      reason -> "the database does not answer: #{reason}, after #{ms(health.store_latency)} ms"
    end
  end

  # That it does not run is told of the store.
  defp check(:vault_unhealthy, _settings, %{health: %{vault: vault}}) do
    if vault not in [:ok, :unknown, :not_running], do: "data keys do not open: #{vault}"
  end

  defp check(:prekeys_low, settings, %{prekeys: %{local: local, published: published}}) do
    left = if local, do: local.low_left, else: 0
    published = if settings[:published] && published, do: published.low, else: 0

    cond do
      left > settings[:above] ->
        "#{left} devices have few one-time prekeys, and maintenance made no new ones for them"

      published > settings[:above] ->
        "#{published} devices with keys of their own have few one-time prekeys and have to publish new ones"

      true ->
        nil
    end
  end

  defp check(:prekeys_exhausted, settings, snapshot),
    do:
      counted(
        snapshot,
        :prekeys_exhausted,
        settings,
        "sessions begun without a one-time prekey lately, as there was none left: %{count}"
      )

  defp check(:restored, settings, snapshot),
    do:
      counted(
        snapshot,
        :restored,
        settings,
        "the database was restored, copied or failed over: all sessions start anew"
      )

  defp check(:maintenance_failed, settings, snapshot),
    do:
      counted(
        snapshot,
        :maintenance_failures,
        settings,
        "tasks, devices and sessions of maintenance that got an error lately: %{count}"
      )

  defp counted(%{counts: counts}, name, settings, sentence) do
    count = counts[name].window
    if count > settings[:above], do: String.replace(sentence, "%{count}", "#{count}")
  end

  defp ms(nil), do: "0"
  defp ms(number), do: plain(number * 1.0)
  defp percent(share), do: plain(share * 100.0)

  # 12, 0.4, 103.25
  defp plain(number) do
    number
    |> :erlang.float_to_binary(decimals: 2)
    |> String.trim_trailing("0")
    |> String.trim_trailing(".")
  end
end
