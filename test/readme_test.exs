defmodule Kith.ReadmeTest do
  # The example of the README, as it stands there.
  use Kith.Case, async: true

  test "the example runs" do
    folder = tmp_dir!()
    key = Path.join(folder, "kith.key")
    File.write!(key, Base.encode64(:crypto.strong_rand_bytes(32)))
    File.chmod!(key, 0o600)

    [_, example | _] = String.split(File.read!("README.md"), ["```elixir\n", "```\n"])
    assert length(String.split(example, "\n", trim: true)) <= 12

    example
    |> String.replace("kith.db", Path.join(folder, "kith.db"))
    |> String.replace("\"kith.key\"", inspect(key))
    |> Code.eval_string()

    # It writes beside its database when it ends.
    :ok = Supervisor.stop(running())
  end

  defp running do
    name = {Kith.Supervisor, Module.concat(["MyApp.Kith"])}
    [{supervisor, _}] = Registry.lookup(Kith.Registry, name)
    supervisor
  end
end
