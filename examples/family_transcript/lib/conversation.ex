defmodule FamilyTranscript.Conversation do
  @moduledoc """
  Replays a transcript among the people in it, one line at a time.

  Each line is encrypted for all others and put into their mailboxes. Who is online opens it at once. People go
  offline for a while; when they are back they open what has piled up, in a shuffled order. Some write
  before they have read, so that two people may start a session with each other at the same time.
  """

  alias FamilyTranscript.{Failure, Official, WithoutDatabase}

  # In a hundred: how often somebody goes offline at a line, and how often somebody who is offline and speaks
  # does so before reading.
  @leaves 15
  @speaks_first 33
  @lines_away 5..40

  @enforce_keys [:kith, :people, :official]
  defstruct kith: nil,
            people: [],
            official: nil,
            mailboxes: %{},
            logs: %{},
            away: %{},
            envelopes: 0,
            starting: 0,
            wire_bytes: 0,
            durable: [],
            cold: [],
            native: [],
            caught_up: 0,
            shuffled: 0

  @doc "A conversation in which nothing was said. `kith` is the module of the instance."
  def new(kith, people, official) do
    %__MODULE__{
      kith: kith,
      people: people,
      official: official,
      mailboxes: Map.new(people, &{&1, []}),
      logs: Map.new(people, &{&1, %{}})
    }
  end

  def say(%__MODULE__{} = conversation, line) do
    conversation
    |> back(for {person, until} <- conversation.away, until <= line.number, do: person)
    |> speaker(line)
    |> leave(line)
    |> send_line(line)
    |> deliver()
  end

  def everyone_back(%__MODULE__{} = conversation),
    do: back(conversation, Map.keys(conversation.away))

  @doc "Compares what each person sent and read, in the order of the numbers, with the transcript."
  def verify!(%__MODULE__{} = conversation, lines) do
    for person <- conversation.people do
      own = for line <- lines, line.from == person, do: {line.number, {line.from, line.text}}
      log = Enum.sort(own ++ Map.to_list(conversation.logs[person]))

      if log != Enum.map(lines, &{&1.number, {&1.from, &1.text}}),
        do: raise(Failure, "the log of #{person} is not the transcript")
    end
  end

  def away(%__MODULE__{away: away}) when away == %{}, do: ""

  def away(%__MODULE__{} = conversation),
    do: "offline: " <> Enum.map_join(conversation.away, ", ", &elem(&1, 0))

  defp back(conversation, people) do
    Enum.reduce(Enum.sort(people), conversation, fn person, conversation ->
      mail = Enum.shuffle(conversation.mailboxes[person])
      conversation = %{conversation | away: Map.delete(conversation.away, person)}

      conversation =
        if length(mail) > 1,
          do: %{
            conversation
            | caught_up: conversation.caught_up + 1,
              shuffled: conversation.shuffled + length(mail)
          },
          else: conversation

      open_mail(conversation, person, mail)
    end)
  end

  defp speaker(conversation, line) do
    cond do
      not is_map_key(conversation.away, line.from) -> conversation
      chance?(@speaks_first) -> put_in(conversation.away[line.from], line.number + 1)
      true -> back(conversation, [line.from])
    end
  end

  # Never more than half of the people.
  defp leave(conversation, line) do
    online = conversation.people -- [line.from | Map.keys(conversation.away)]

    if online != [] and chance?(@leaves) and
         2 * (map_size(conversation.away) + 1) <= length(conversation.people) do
      put_in(conversation.away[Enum.random(online)], line.number + Enum.random(@lines_away))
    else
      conversation
    end
  end

  # The number of the line is part of the plaintext: who reads out of order sorts by it.
  defp send_line(conversation, line) do
    plaintext = <<line.number::32, line.text::binary>>

    {envelopes, conversation} =
      if official?(conversation, line.from),
        do: {official_fan_out(conversation, plaintext), conversation},
        else: fan_out(conversation, line.from, plaintext)

    Enum.reduce(envelopes, conversation, fn envelope, conversation ->
      packet = Kith.Envelope.to_binary(envelope)
      {to, 1} = envelope.to

      %{
        conversation
        | mailboxes: Map.update!(conversation.mailboxes, to, &[packet | &1]),
          envelopes: conversation.envelopes + 1,
          starting: conversation.starting + if(envelope.type == :prekey, do: 1, else: 0),
          wire_bytes: conversation.wire_bytes + byte_size(packet)
      }
    end)
  end

  defp fan_out(%{kith: kith, people: people} = conversation, from, plaintext) do
    native = WithoutDatabase.measure(kith, from, people, plaintext)

    started = System.monotonic_time()
    result = kith.encrypt_group(from, people, plaintext)
    took = System.convert_time_unit(System.monotonic_time() - started, :native, :nanosecond)

    envelopes =
      for {to, result} <- ok!(result, "#{from} could not encrypt"),
          do: ok!(result, "#{from} could not encrypt for #{inspect(to)}")

    if native,
      do:
        {envelopes,
         %{
           conversation
           | durable: [took | conversation.durable],
             native: [native | conversation.native]
         }},
      else: {envelopes, %{conversation | cold: [took | conversation.cold]}}
  end

  defp official_fan_out(%{kith: kith, official: official} = conversation, plaintext) do
    for to <- conversation.people, to != official.name do
      Official.encrypt(official, to, plaintext, fn ->
        ok!(kith.pre_key_bundle(to), "no prekeys of #{to}")
      end)
    end
  end

  defp deliver(conversation) do
    online = conversation.people -- Map.keys(conversation.away)

    Enum.reduce(online, conversation, fn person, conversation ->
      open_mail(conversation, person, Enum.reverse(conversation.mailboxes[person]))
    end)
  end

  defp open_mail(conversation, person, mail) do
    log = Enum.reduce(mail, conversation.logs[person], &open(conversation, person, &1, &2))

    %{
      conversation
      | logs: Map.put(conversation.logs, person, log),
        mailboxes: Map.put(conversation.mailboxes, person, [])
    }
  end

  defp open(%{kith: kith} = conversation, person, packet, log) do
    envelope = ok!(Kith.Envelope.from_binary(packet), "#{person} got a broken envelope")
    {from, 1} = envelope.from

    <<number::32, text::binary>> =
      if official?(conversation, person),
        do: Official.decrypt(conversation.official, envelope),
        else: ok!(kith.decrypt(person, envelope), "#{person} could not open what #{from} wrote")

    if is_map_key(log, number), do: raise(Failure, "#{person} read message #{number} twice")
    Map.put(log, number, {from, text})
  end

  defp official?(%{official: nil}, _person), do: false
  defp official?(%{official: official}, person), do: official.name == person

  defp chance?(percent), do: :rand.uniform(100) <= percent

  defp ok!({:ok, value}, _what), do: value
  defp ok!({:error, error}, what), do: raise(Failure, "#{what}: #{Exception.message(error)}")
end
