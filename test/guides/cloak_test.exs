defmodule Kith.Guides.CloakTest do
  # The configurations of docs/guides/cloak.md are ones that a vault takes.
  use ExUnit.Case, async: true

  alias Kith.Vault.Config

  @guide File.read!("docs/guides/cloak.md")

  defp blocks, do: for([_, code] <- Regex.scan(~r/```elixir\n(.*?)```/s, @guide), do: code)

  test "every block of code is Elixir" do
    for code <- blocks(), do: assert({:ok, _} = Code.string_to_quoted(code), code)
  end

  test "the configurations are taken, and the first of Cloak's or the current one encrypts" do
    key = Base.encode64(<<7::256>>)

    currents =
      for "config :my_app, MyApp.Vault," <> options <- blocks() do
        {options, _} = Code.eval_string("[" <> String.replace(options, "…", key) <> "]")
        assert {:ok, config} = Config.new(options)
        config.current
      end

    assert currents == ["default", "default"]
  end

  test "the modules of Ecto are those that are there" do
    names = Regex.run(~r/The names are the same throughout: (.*?), with/s, @guide) |> List.last()
    named = for [_, name] <- Regex.scan(~r/`(\w+)`/, names), do: name
    files = for file <- Path.wildcard("lib/kith/ecto/*.ex"), do: Path.basename(file, ".ex")
    assert Enum.sort(Enum.map(named, &Macro.underscore/1)) == Enum.sort(files -- ~w(type hashed))
  end
end
