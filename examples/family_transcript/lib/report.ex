defmodule FamilyTranscript.Report do
  @moduledoc false
  # The closing table and the sentence under it.

  alias FamilyTranscript.Conversation

  def print(%Conversation{} = conversation, lines, figures) do
    rows(conversation, lines, figures)
    |> Enum.each(fn {label, value} -> IO.puts("  #{String.pad_trailing(label, 34)} #{value}") end)

    IO.puts("")
    IO.puts(sentence(conversation, lines, figures))
  end

  defp rows(conversation, lines, figures) do
    others = length(conversation.people) - 1
    text_bytes = lines |> Enum.map(&byte_size(&1.text)) |> Enum.sum()

    [
      {"messages", number(length(lines))},
      {"envelopes",
       "#{number(conversation.envelopes)}, #{conversation.starting} of them prekey messages"},
      {"bytes on the wire",
       "#{number(conversation.wire_bytes)} for #{number(text_bytes * others)} bytes of text"},
      {"caught up out of order",
       "#{number(conversation.shuffled)} envelopes, after #{conversation.caught_up} absences"},
      {"fan-out to #{others}, durable on disk", spread(conversation.durable)},
      {"the same without the database", spread(conversation.native)},
      {"fan-out that starts sessions", spread(conversation.cold)},
      {"one-time prekeys left", prekeys(conversation.official, figures)},
      {"every log equals the transcript", "yes, of #{length(conversation.people)} people"},
      {"plaintext or keys in the database",
       "none: #{number(figures.texts)} texts and the key, #{number(figures.searched)} bytes searched"}
    ]
  end

  defp sentence(conversation, lines, figures) do
    durable = percentile(conversation.durable, 50)
    native = percentile(conversation.native, 50)

    "#{number(length(lines))} messages among #{length(conversation.people)} people" <>
      official(conversation.official) <>
      " went out as #{number(conversation.envelopes)} envelopes of #{number(conversation.wire_bytes)} bytes, " <>
      "were all read and left no plaintext and no key in the database" <>
      if(durable,
        do: "; a fan-out took #{duration(durable)}, and #{duration(native)} without the database",
        else: ""
      ) <> if(figures.seed == 1, do: ".", else: " (seed #{figures.seed}).")
  end

  defp official(nil), do: ""
  defp official(official), do: ", #{official.name} with the official client,"

  defp prekeys(official, %{prekeys: counts, relayed: relayed}) do
    {fewest, most} = Enum.min_max(counts)

    if(fewest == most, do: "#{most} each", else: "#{fewest} to #{most} each") <>
      if(official, do: "; #{relayed} of the #{official.published} of #{official.name}", else: "")
  end

  defp spread([]), do: "none in this transcript"

  defp spread(times) do
    "median #{duration(percentile(times, 50))}, p99 #{duration(percentile(times, 99))} (#{number(length(times))} calls)"
  end

  defp percentile([], _percent), do: nil

  defp percentile(times, percent) do
    times |> Enum.sort() |> Enum.at(ceil(length(times) * percent / 100) - 1)
  end

  defp duration(nanoseconds) when nanoseconds < 1_000_000, do: "#{round(nanoseconds / 1_000)} µs"
  defp duration(nanoseconds), do: "#{Float.round(nanoseconds / 1_000_000, 1)} ms"

  defp number(integer) do
    integer
    |> Integer.to_string()
    |> String.reverse()
    |> String.replace(~r/(\d{3})(?=\d)/, "\\1,")
    |> String.reverse()
  end
end
