defmodule Kith.NativeTest do
  use ExUnit.Case, async: true

  test "every stub has its NIF and every NIF its stub" do
    stubs = Kith.Native.__info__(:functions) -- [load: 0]
    assert Enum.sort(Kith.Native.module_info(:nifs)) == Enum.sort(stubs)
  end

  test "a missing library is an error that says so when it is first called" do
    child = """
    IO.puts(Exception.message(try do
      Kith.Native.reasons()
    rescue
      error in Kith.NifNotLoadedError -> error
    end))
    """

    assert {output, 0} = Kith.ChildVM.run(child, library: nil)
    assert output =~ "Kith's native library is not loaded"
    assert output =~ "Run `mix compile` with cargo installed"
  end

  test "the functions of the native library refuse arguments of the wrong kind" do
    assert_raise ArgumentError, fn -> Kith.Native.sqlite_open("kith.db", :full, 0) end
    assert_raise ArgumentError, fn -> Kith.Native.sqlite_reset(make_ref()) end

    for {source, cipher} <- [{{:url, "x"}, :aes_256_gcm}, {{:key, <<7::256>>}, :aes_128_gcm}] do
      assert_raise ArgumentError, fn ->
        limits = %{keys: 16, lifetime: 1, concurrency: 1}
        Kith.Native.vault_open("id", [{"id", source}], limits, cipher)
      end
    end
  end
end
