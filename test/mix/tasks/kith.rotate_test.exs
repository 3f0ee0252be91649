defmodule Mix.Tasks.Kith.RotateTest do
  # The shell of Mix and the environment of the application are global.
  use Kith.Case, async: false

  import ExUnit.CaptureIO

  alias Mix.Tasks.Kith.Rotate

  defmodule Family do
    use Kith, otp_app: :kith
  end

  @keys for n <- 1..2, do: {"k#{n}", {:key, String.duplicate("#{n}", 32)}}

  setup do
    options = defaults(archive: true, keys: [current: hd(@keys)])
    Application.put_env(:kith, Family, options)
    on_exit(fn -> Application.delete_env(:kith, Family) end)
    start_supervised!(Family)
    for user <- ~w(anna ben), do: Family.register!(user)
    [envelope] = Family.encrypt!("anna", "ben", "secret words")
    "secret words" = Family.decrypt!("ben", envelope)
    stop_supervised!(Family)

    new = [current: Enum.at(@keys, 1), retired: [hd(@keys)]]
    Application.put_env(:kith, Family, Keyword.put(options, :keys, new))
    %{options: options}
  end

  defp run(arguments), do: capture_io(fn -> Rotate.run([inspect(Family) | arguments]) end)

  test "rotates the keys of an instance that does not run, says what it did, and stops it again" do
    assert run(["--dry-run"]) =~
             "Nothing was written. There would be: 3 rewrapped, 0 current, 0 rotated, 0 refused"

    output = run(["--verify"])
    assert output =~ "Done: 3 rewrapped, 0 current, 0 rotated, 0 refused"
    assert output =~ ~r/Verified: \d+ opened, 0 damaged, 0 locked, 0 outdated/
    refute output =~ "secret"
    refute Kith.Instance.running?(Family)

    assert run(["--older-than", "365"]) =~ "Done: 0 rewrapped, 3 current, 0 rotated, 0 refused"
  end

  test "has a counterpart for a release, where Mix does not run and nothing of the application does",
       %{
         options: options
       } do
    code = """
    defmodule Family do
      use Kith, otp_app: :kith
    end

    # As the configuration of a release is read.
    keys = [
      current: {"k2", {:env, "NEW_KEY"}},
      retired: [{"k1", {:env, "OLD_KEY"}}]
    ]

    Application.put_env(:kith, Family, keys: keys, archive: true, database: System.fetch_env!("DATABASE"))
    nil = List.keyfind(Application.started_applications(), :mix, 0)
    {:ok, counts} = Kith.Vault.rotate(Family, verify: true)
    IO.inspect({counts.rewrapped, counts.remaining, counts.verified.damaged, counts.verified.outdated})
    IO.inspect(Kith.Instance.running?(Family))
    """

    env = [
      {"DATABASE", options[:database]},
      {"OLD_KEY", Base.encode64(String.duplicate("1", 32))},
      {"NEW_KEY", Base.encode64(String.duplicate("2", 32))}
    ]

    assert {"{3, %{}, 0, 0}\nfalse\n", 0} = Kith.ChildVM.run(code, env: env)
  end

  test "works with one that runs, and leaves it running" do
    start_supervised!(Family)
    assert run([]) =~ "Done: 3 rewrapped"
    assert Kith.Instance.running?(Family)
  end

  test "ends with status 1 and names the key when something does not open", %{options: options} do
    Application.put_env(:kith, Family, Keyword.put(options, :keys, current: Enum.at(@keys, 1)))

    output =
      capture_io(:stderr, fn ->
        assert capture_io(fn ->
                 assert catch_exit(Rotate.run([inspect(Family)])) == {:shutdown, 1}
               end) =~ "3 refused"
      end)

    assert output =~ "3 data keys do not open. They say they are under k1."
  end

  test "refuses what it does not know, and says why it cannot", %{options: options} do
    for arguments <- [[], ["A", "B"], [inspect(Family), "--older-than", "0"]],
        do: assert_raise(Mix.Error, ~r/expected the module/, fn -> Rotate.run(arguments) end)

    assert_raise ArgumentError, ~r/use Kith/, fn -> Kith.Vault.rotate(Enum) end

    absent = Path.join(tmp_dir!(), "absent.db")
    Application.put_env(:kith, Family, Keyword.put(options, :database, absent))
    assert_raise Mix.Error, ~r/there is no database/, fn -> run([]) end
    assert {:error, %{reason: :storage}} = Kith.Vault.rotate(Family)
    refute File.exists?(absent)
  end
end
