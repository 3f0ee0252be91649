defmodule Kith.Test.PrometheusText do
  @moduledoc false
  # Reads the text format of Prometheus, version 0.0.4, as strictly as it is described, and raises on anything else:
  # https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format

  @name ~r/\A[a-zA-Z_:][a-zA-Z0-9_:]*\z/
  @label ~r/\A[a-zA-Z_][a-zA-Z0-9_]*/

  @doc "`%{family => %{type, help, samples: [{name, %{label => value}, number}]}}`."
  def parse!(text) do
    true = String.valid?(text)
    true = String.ends_with?(text, "\n")

    {families, _current} =
      text |> String.split("\n") |> List.delete_at(-1) |> Enum.reduce({%{}, nil}, &line/2)

    for {name, family} <- families, into: %{} do
      family = Map.update!(family, :samples, &Enum.reverse/1)
      check!(name, family)
      {name, family}
    end
  end

  # HELP comes first, then TYPE, then the samples; a family is in one piece.
  defp line("# HELP " <> rest, {families, _current}) do
    [name, help] = String.split(rest, " ", parts: 2)
    true = name =~ @name
    false = is_map_key(families, name)
    {Map.put(families, name, %{help: unescape(help, "\\n"), type: nil, samples: []}), name}
  end

  defp line("# TYPE " <> rest, {families, current}) do
    [^current, type] = String.split(rest, " ")
    true = type in ~w(counter gauge histogram summary untyped)
    %{type: nil, samples: []} = families[current]
    {put_in(families[current].type, type), current}
  end

  defp line(sample, {families, current}) do
    {name, labels, value} = sample!(sample)
    true = family?(families[current].type, current, name)
    false = Enum.any?(families[current].samples, &match?({^name, ^labels, _}, &1))
    {update_in(families[current].samples, &[{name, labels, value} | &1]), current}
  end

  defp family?("histogram", family, name),
    do: name in for(s <- ~w(_bucket _sum _count), do: family <> s)

  defp family?(_type, family, name), do: name == family

  defp sample!(line) do
    [name] = Regex.run(~r/\A[a-zA-Z_:][a-zA-Z0-9_:]*/, line)
    {labels, rest} = labels!(after!(line, name))
    " " <> value = rest
    {name, labels, number!(value)}
  end

  defp labels!("{" <> rest), do: label!(rest, %{})
  defp labels!(rest), do: {%{}, rest}

  defp label!(text, labels) do
    [name] = Regex.run(@label, text)
    false = is_map_key(labels, name)
    "=\"" <> rest = after!(text, name)
    {value, rest} = quoted!(rest, "")
    labels = Map.put(labels, name, value)

    case rest do
      "," <> rest -> label!(rest, labels)
      "}" <> rest -> {labels, rest}
    end
  end

  defp quoted!("\"" <> rest, value), do: {value, rest}
  defp quoted!("\\\\" <> rest, value), do: quoted!(rest, value <> "\\")
  defp quoted!("\\\"" <> rest, value), do: quoted!(rest, value <> "\"")
  defp quoted!("\\n" <> rest, value), do: quoted!(rest, value <> "\n")

  defp quoted!(<<byte::utf8, rest::binary>>, value) when byte not in [?\\, ?\n],
    do: quoted!(rest, value <> <<byte::utf8>>)

  defp after!(text, prefix) do
    true = String.starts_with?(text, prefix)
    binary_part(text, byte_size(prefix), byte_size(text) - byte_size(prefix))
  end

  defp number!("+Inf"), do: :infinity

  defp number!(text) do
    {number, ""} = Float.parse(text)
    number
  end

  defp unescape(text, _), do: text |> String.replace("\\n", "\n") |> String.replace("\\\\", "\\")

  defp check!(name, %{type: "counter", samples: [_ | _]} = family) do
    true = String.ends_with?(name, "_total")
    for {_, _, value} <- family.samples, do: true = value >= 0
  end

  defp check!(_name, %{type: "gauge", samples: [_ | _]}), do: :ok

  # Buckets count what is up to a bound, so they never fall, and the last is all.
  defp check!(name, %{type: "histogram", samples: [_ | _] = samples}) do
    for {_, series} <- Enum.group_by(samples, fn {_, labels, _} -> Map.delete(labels, "le") end) do
      buckets =
        for {suffixed, %{"le" => le}, value} <- series,
            suffixed == name <> "_bucket",
            do: {bound!(le), value}

      true = buckets == Enum.sort(buckets)
      values = Enum.map(buckets, &elem(&1, 1))
      true = values == Enum.sort(values)
      {:infinity, all} = List.last(buckets)
      [^all] = for {suffixed, _, value} <- series, suffixed == name <> "_count", do: value
      [sum] = for {suffixed, _, value} <- series, suffixed == name <> "_sum", do: value
      true = sum >= 0
    end
  end

  # Atoms sort after numbers.
  defp bound!("+Inf"), do: :infinity
  defp bound!(text), do: number!(text)
end
