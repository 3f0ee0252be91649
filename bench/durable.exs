defmodule Bench.Durable do
  # The whole path: Kith.encrypt_group/4 and Kith.decrypt/3 on SQLite with `synchronous: :full`.

  @plaintext String.duplicate("a", 256)

  def start(directory, largest) do
    key = :crypto.strong_rand_bytes(32)

    # The stock of 100 lasts for a round and is filled between rounds, so that nobody makes prekeys while
    # the clock runs.
    {:ok, _} =
      Kith.start_link(
        name: __MODULE__,
        database: Path.join(directory, "kith.db"),
        keys: [current: {"bench", {:key, key}}],
        one_time_kyber_prekeys: 100,
        replenish_below: 0
      )

    for user <- ["sender", "stranger", "anna", "ben" | members(largest)],
        do: Kith.register!(__MODULE__, user)

    for member <- members(largest), do: establish("sender", member)
    establish("anna", "ben")
    %{largest: largest}
  end

  def refill(state) do
    for user <- ["ben" | members(state.largest)], do: Kith.replenish!(__MODULE__, user)
    :ok
  end

  def sample(state, operation, people, samples) do
    {for(_ <- 1..samples, do: once(operation, people)), state}
  end

  defp once("established", people), do: fan_out("sender", members(people), :message)

  defp once("cold", people) do
    for member <- members(people), do: Kith.delete(__MODULE__, "stranger", member)
    fan_out("stranger", members(people), :prekey)
  end

  defp once("decrypt", _people) do
    open("ben", hd(Kith.encrypt!(__MODULE__, "anna", "ben", @plaintext)))
  end

  defp once("decrypt_new_chain", people) do
    open("anna", hd(Kith.encrypt!(__MODULE__, "ben", "anna", @plaintext)))
    once("decrypt", people)
  end

  defp once("decrypt_first", _people) do
    Kith.delete(__MODULE__, "stranger", "ben")
    Kith.delete(__MODULE__, "ben", "stranger")
    open("ben", hd(Kith.encrypt!(__MODULE__, "stranger", "ben", @plaintext)))
  end

  defp fan_out(from, members, type) do
    {time, {:ok, results}} =
      time(fn -> Kith.encrypt_group(__MODULE__, from, members, @plaintext) end)

    true = Enum.all?(results, &match?({_, {:ok, %{type: ^type}}}, &1))
    time
  end

  defp open(to, envelope) do
    {time, {:ok, @plaintext}} = time(fn -> Kith.decrypt(__MODULE__, to, envelope) end)
    time
  end

  defp establish(a, b) do
    for {from, to} <- [{a, b}, {b, a}, {a, b}],
        do: open(to, hd(Kith.encrypt!(__MODULE__, from, to, @plaintext)))
  end

  # All but the one who writes.
  defp members(people), do: for(number <- 2..people, do: "person-#{number}")

  defp time(fun) do
    start = System.monotonic_time(:nanosecond)
    result = fun.()
    {System.monotonic_time(:nanosecond) - start, result}
  end
end
