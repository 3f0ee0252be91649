defmodule FamilyTranscript.WithoutDatabase do
  @moduledoc """
  What a fan-out costs when nothing is read or written: the one native call of `Kith.encrypt_group/4`, from sealed
  states to sealed states.

  The states are read before the clock starts. The messages of the call are thrown away, as what was
  encrypted with a state that is not stored must never leave. It reaches below the public functions, as nothing
  else can leave the database out.
  """

  alias Kith.{Instance, Native, Registration}
  alias Kith.Store.Sessions

  @doc "Nanoseconds, or `nil` where a session is still to be started."
  def measure(name, from, members, plaintext) do
    instance = Instance.fetch!(name)
    {:ok, device} = Registration.fetch_local(instance.repo, {from, 1})
    peers = for member <- Enum.sort(members), member != from, do: {member, 1}
    rows = Sessions.fetch_many(instance.repo, {from, 1}, Enum.map(peers, &elem(&1, 0)))

    if Enum.all?(peers, &rows[&1][:state]) do
      {account, local} = Registration.on_behalf_of(instance, {from, 1}, device)

      recipients =
        for {user, _} = peer <- peers,
            do: Map.merge(rows[peer], %{user: user, device: 1, sibling: nil, bundle: nil})

      arguments = [
        instance.vault,
        account,
        local,
        recipients,
        plaintext,
        System.system_time(:millisecond)
      ]

      started = System.monotonic_time()
      {:ok, _thrown_away} = apply(Native, :session_encrypt, arguments)
      System.convert_time_unit(System.monotonic_time() - started, :native, :nanosecond)
    end
  end
end
