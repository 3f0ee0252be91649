defmodule Kith.Guides.TestingTest do
  # The guide to testing: its modules are compiled here, and its tests are tests of this suite.
  use ExUnit.Case, async: true

  @guide "docs/guides/testing.md"

  # Names of its own, so that nothing here meets another example.
  blocks =
    ~r/^```elixir\n(.*?)^```$/ms
    |> Regex.scan(File.read!(@guide), capture: :all_but_first)
    |> Enum.map(fn [block] -> String.replace(block, "MyApp", "Kith.Guides.MyApp") end)

  {configs, blocks} = Enum.split_with(blocks, &(&1 =~ "import Config"))
  {modules, tests} = Enum.split_with(blocks, &(&1 =~ ~r/\Adefmodule /))

  @config configs

  for module <- modules, do: Code.compile_string(module, @guide)

  # They are of the module the guide begins with.
  [begun] = Enum.filter(modules, &(&1 =~ "use ExUnit.Case"))
  [head, _] = String.split(begun, ~r/^  test /m, parts: 2)

  Code.compile_string(
    String.replace(head, "ChatTest", "FurtherChatTest") <> Enum.join(tests, "\n") <> "\nend\n",
    @guide
  )

  @names for module <- [Kith.Guides.MyApp.ChatTest, Kith.Guides.MyApp.FurtherChatTest],
             {name, 1} <- module.__info__(:functions),
             String.starts_with?(Atom.to_string(name), "test "),
             do: name

  test "all tests of the guide are run" do
    assert length(@names) == length(Regex.scan(~r/^ *test "/m, File.read!(@guide)))
    assert length(@names) > 5
  end

  test "its configuration is that of an instance" do
    assert [config] = @config
    [my_app: [{_module, options}]] = Config.Reader.eval!("config/test.exs", config)
    assert {:ok, %{database: :memory}} = Kith.Options.new(options)
  end
end
