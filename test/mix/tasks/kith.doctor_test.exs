defmodule Mix.Tasks.Kith.DoctorTest do
  # The shell of Mix and the environment of the application are global.
  use Kith.Case, async: false

  import ExUnit.CaptureIO

  alias Mix.Tasks.Kith.Doctor

  defmodule Family do
    use Kith, otp_app: :kith
  end

  defmodule Untouched do
    use Kith, otp_app: :kith
  end

  setup do
    Application.put_env(:kith, Family, defaults())
    on_exit(fn -> Application.delete_env(:kith, Family) end)
    start_supervised!(Family)
    for user <- ~w(anna ben), do: Family.register!(user)
    [envelope] = Family.encrypt!("anna", "ben", "secret words")
    %{envelope: envelope, path: Path.join(tmp_dir!(), "message.bin")}
  end

  test "says how an instance is" do
    output = capture_io(fn -> Doctor.run([inspect(Family)]) end)
    assert output =~ ~r/ok +tables: version \d+/
    assert output =~ "the data keys of 2 accounts open"

    Kith.SQLite.query(
      Kith.Instance.fetch!(Family).repo,
      "UPDATE signal_accounts SET data_key = 'x'"
    )

    assert capture_io(fn -> assert catch_exit(Doctor.run([inspect(Family)])) == {:shutdown, 1} end) =~
             "error   keys"
  end

  test "says why a message does not open, from bytes or Base64", %{envelope: envelope, path: path} do
    File.write!(path, Kith.Envelope.to_binary(envelope))
    arguments = [inspect(Family), "--to", "ben", "--envelope", path]
    assert capture_io(fn -> Doctor.run(arguments) end) =~ "The message opens."

    assert Family.decrypt!("ben", envelope) == "secret words"
    File.write!(path, Base.encode64(Kith.Envelope.to_binary(envelope)) <> "\n")
    arguments = arguments ++ ["--device", "1"]

    output = capture_io(fn -> assert catch_exit(Doctor.run(arguments)) == {:shutdown, 1} end)
    assert output =~ "second delivery"
    refute output =~ "secret"
  end

  test "cannot look at a database in the memory of another process" do
    Application.put_env(:kith, Untouched, defaults(database: :memory))
    on_exit(fn -> Application.delete_env(:kith, Untouched) end)

    assert_raise Mix.Error, ~r/in the memory of the process that runs it/, fn ->
      Doctor.run([inspect(Untouched)])
    end
  end

  test "starts an instance that is not running, and says why it cannot" do
    options = defaults()
    Application.put_env(:kith, Untouched, options)
    on_exit(fn -> Application.delete_env(:kith, Untouched) end)

    # It makes none where there is none.
    assert_raise Mix.Error, ~r/there is no database/, fn -> Doctor.run([inspect(Untouched)]) end
    refute File.exists?(options[:database])
    start_kith!(name: :before, database: options[:database])
    stop_kith!(:before)

    # Linked to whoever runs the task.
    task = Task.async(fn -> capture_io(fn -> Doctor.run([inspect(Untouched)]) end) end)

    assert Task.await(task) =~ "the data keys of 0 accounts open"
  end

  test "refuses what it does not know", %{path: path} do
    for arguments <- [
          [],
          ["A", "B"],
          [inspect(Family), "--to", "ben"],
          [inspect(Family), "--device", "2"]
        ],
        do: assert_raise(Mix.Error, ~r/expected the module/, fn -> Doctor.run(arguments) end)

    assert_raise Mix.Error, ~r/use Kith/, fn -> Doctor.run(["Enum"]) end

    assert_raise Mix.Error, ~r/cannot be read/, fn ->
      Doctor.run([inspect(Family), "--to", "ben", "--envelope", path <> ".none"])
    end
  end
end
