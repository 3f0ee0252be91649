defmodule Mix.Tasks.Kith.Gen.KeyTest do
  # The shell of Mix is global.
  use Kith.Case, async: false

  import ExUnit.CaptureIO

  alias Mix.Tasks.Kith.Gen.Key

  test "prints 32 bytes in Base64 and how to use them" do
    output = capture_io(fn -> Key.run([]) end)
    # Mix says whose task it is when another project was in the way before.
    [key | _] = output |> String.split("\n") |> Enum.reject(&String.starts_with?(&1, "==>"))
    assert {:ok, <<_::256>>} = Base.decode64(key)
    assert output =~ "export KITH_KEY=#{key}"
    assert output =~ ~s({:env, "KITH_KEY"})
    refute capture_io(fn -> Key.run([]) end) =~ key
  end

  test "writes a file that its owner alone may read and that opens a vault" do
    path = Path.join(tmp_dir!(), "kith.key")
    output = capture_io(fn -> Key.run(["--file", path]) end)
    assert %File.Stat{mode: mode} = File.stat!(path)
    assert Bitwise.band(mode, 0o777) == 0o600
    refute output =~ String.trim(File.read!(path))
    assert output =~ path

    kith = start_kith!(keys: [current: {"file", {:file, path}}])
    assert {:ok, _} = Kith.register(kith, "anna")
  end

  test "never overwrites a file" do
    path = Path.join(tmp_dir!(), "kith.key")
    File.write!(path, "old")
    assert_raise Mix.Error, ~r/exists/, fn -> Key.run(["--file", path]) end
    assert File.read!(path) == "old"
  end

  test "refuses what it does not know" do
    assert_raise Mix.Error, ~r/expected no argument or --file/, fn -> Key.run(["kith.key"]) end
    assert_raise Mix.Error, ~r/expected no argument or --file/, fn -> Key.run(["--path", "x"]) end
  end
end
