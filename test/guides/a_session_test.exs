defmodule Kith.Guides.ASessionTest do
  # The notebook: its cells run in their order, and return what it shows.
  use ExUnit.Case, async: true

  @path "docs/guides/a-session.livemd"

  # A cell, and its output as Livebook writes it.
  @cells ~r/^```elixir\n(.*?)^```$(?:\n\n<!-- livebook:\{"output":true\} -->\n\n```(\w*)\n(.*?)\n```$)?/ms

  setup do
    for module <- [Picture, Kino.Mermaid], do: forget(module)
    on_exit(fn -> for module <- [Picture, Kino.Mermaid], do: forget(module) end)
  end

  # Its cells define it each time they run.
  defp forget(module) do
    :code.purge(module)
    :code.delete(module)
  end

  defp cells, do: Regex.scan(@cells, File.read!(@path), capture: :all_but_first)

  defp run(cells, check) do
    Enum.reduce(cells, {[], Code.env_for_eval(file: @path)}, fn [code | shown], {binding, env} ->
      {result, binding, env} =
        Code.eval_quoted_with_env(Code.string_to_quoted!(code), binding, env)

      check.(code, shown, result)
      {binding, env}
    end)
  end

  test "the first cell installs this project" do
    [[install] | _] = cells()

    {dependencies, _} =
      install
      |> String.replace("Mix.install(", "Function.identity(")
      |> Code.eval_string([], file: Path.expand(@path))

    assert [kith: [path: path], kino: "~> " <> _] = dependencies
    assert path == File.cwd!()
  end

  test "each cell returns what is shown below it" do
    [_install | cells] = cells()
    assert length(cells) == length(Regex.scan(~r/^```elixir$/m, File.read!(@path))) - 1
    assert Enum.count(cells, &match?([_, "mermaid", "flowchart" <> _], &1)) > 5

    run(cells, fn code, shown, result ->
      assert [language, output] = shown, "no output is shown of\n#{code}"
      if language == "mermaid", do: assert(result == output)
      if language == "", do: assert(inspect(result, pretty: true) == output, code)
      assert language in ["mermaid", ""]
    end)
  end

  test "pictures are drawn where Kino is" do
    Code.compile_string("""
    defmodule Kino.Mermaid do
      def new(diagram), do: {__MODULE__, diagram}
    end
    """)

    [_install | cells] = cells()

    run(cells, fn
      _code, ["mermaid", output], result -> assert result == {Kino.Mermaid, output}
      _code, _shown, _result -> :ok
    end)
  end

  test "its code is formatted" do
    for [code | _] <- cells(),
        do: assert(IO.iodata_to_binary([Code.format_string!(code), "\n"]) == code)
  end
end
