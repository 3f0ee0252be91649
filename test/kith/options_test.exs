defmodule Kith.OptionsTest do
  use ExUnit.Case, async: true
  doctest Kith.Options

  alias Kith.Options

  @secret "0123456789abcdef0123456789abcdef"
  @keys [current: {"2026", {:key, @secret}}]

  defmodule Repo do
    def query(_sql, _params, _options), do: {:ok, %{rows: [], num_rows: 0}}
    def transaction(fun, _options), do: {:ok, fun.()}
  end

  describe "new/1" do
    test "has defaults for all but the keys" do
      assert {:ok,
              %Options{
                name: Kith,
                database: "kith.db",
                repo: nil,
                synchronous: :full,
                minimum_version: 4,
                one_time_prekeys: 100,
                one_time_kyber_prekeys: 20,
                replenish_below: 20,
                prekey_grace_period: 604_800,
                maintenance_interval: 3_600,
                prekey_rotation: 604_800,
                signed_prekey_grace_period: 2_592_000,
                skipped_key_lifetime: 2_592_000,
                unacknowledged_session_lifetime: 2_592_000,
                max_plaintext: 65_536,
                max_attempts: 5,
                archive: false
              }} = Options.new(keys: @keys)
    end

    test "says what was expected and what it got" do
      for {option, value, message} <- [
            {:database, "",
             ~s(expected :database to be a string that is not empty or :memory, got: "")},
            {:database, :disk,
             "expected :database to be a string that is not empty or :memory, got: :disk"},
            {:clock, 7,
             "expected :clock to be a function without arguments that returns milliseconds, got: 7"},
            {:synchronous, :off, "expected :synchronous to be one of :full, :normal, got: :off"},
            {:minimum_version, 2, "expected :minimum_version to be one of 3, 4, got: 2"},
            {:one_time_kyber_prekeys, -1,
             "expected :one_time_kyber_prekeys to be an integer from 0 to 1000, got: -1"},
            {:one_time_prekeys, 0,
             "expected :one_time_prekeys to be an integer from 1 to 1000, got: 0"},
            {:one_time_prekeys, "9",
             ~s(expected :one_time_prekeys to be an integer from 1 to 1000, got: "9")},
            {:replenish_below, -1,
             "expected :replenish_below to be an integer from 0 to 1000, got: -1"},
            {:replenish_below, 101,
             "expected :replenish_below to be at most :one_time_prekeys (100), got: 101"},
            {:prekey_grace_period, 1.5,
             "expected :prekey_grace_period to be an integer from 0 to 31536000, got: 1.5"},
            {:maintenance_interval, 604_801,
             "expected :maintenance_interval to be :off or an integer from 0 to 604800, got: 604801"},
            {:maintenance_interval, :never,
             "expected :maintenance_interval to be :off or an integer from 0 to 604800, got: :never"},
            {:prekey_rotation, -1,
             "expected :prekey_rotation to be an integer from 0 to 31536000, got: -1"},
            {:signed_prekey_grace_period, nil,
             "expected :signed_prekey_grace_period to be an integer from 0 to 31536000, got: nil"},
            {:skipped_key_lifetime, 31_536_001,
             "expected :skipped_key_lifetime to be an integer from 0 to 31536000, got: 31536001"},
            {:unacknowledged_session_lifetime, 1.0,
             "expected :unacknowledged_session_lifetime to be an integer from 0 to 31536000, got: 1.0"},
            {:max_plaintext, 1_048_577,
             "expected :max_plaintext to be an integer from 1 to 1048576, got: 1048577"},
            {:max_attempts, 0, "expected :max_attempts to be an integer from 1 to 100, got: 0"},
            {:repo, String,
             "expected :repo to be a module with query/3 and transaction/2, got: String"},
            {:repo, nil, "expected :repo to be a module with query/3 and transaction/2, got: nil"}
          ] do
        assert {:error, ^message} = Options.new([{:keys, @keys}, {option, value}])
      end
    end

    test "takes an archive with or without an end" do
      for {given, archive} <- [
            {true, []},
            {[], []},
            {false, false},
            {[retention: nil], [retention: nil]},
            {[retention: 86_400], [retention: 86_400]}
          ],
          do: assert({:ok, %{archive: ^archive}} = Options.new(keys: @keys, archive: given))

      for wrong <- [nil, 5, [retention: 0], [retention: 1.5], [retain: 5], [retention: 1, x: 1]] do
        assert {:error,
                "expected :archive to be true, false or [retention: seconds] with 1 to " <> _} =
                 Options.new(keys: @keys, archive: wrong)
      end
    end

    test "takes no passes of maintenance, in either spelling" do
      for off <- [:off, 0],
          do: assert({:ok, _} = Options.new(keys: @keys, maintenance_interval: off))
    end

    test "suggests the nearest of the known options" do
      assert Options.new(keys: @keys, databse: "x") ==
               {:error, "unknown option :databse, did you mean :database?"}

      assert {:error, "unknown option :zzz, known ones are :name, :keys, " <> _} =
               Options.new(keys: @keys, zzz: 1)
    end

    test "takes a module shaped like an Ecto repository, but not with a database" do
      assert {:ok, %Options{repo: Repo}} = Options.new(keys: @keys, repo: Repo)

      assert Options.new(keys: @keys, repo: Repo, database: "x") ==
               {:error, "expected either :repo or :database, got both"}
    end

    test "takes every source of a key" do
      for source <- [{:env, "KITH_KEY"}, {:file, "/etc/kith.key"}, {:key, @secret}] do
        assert {:ok, _} = Options.new(keys: [current: {"a", source}, retired: [{"b", source}]])
      end
    end

    test "refuses keys of another shape and never prints them" do
      for keys <- [
            @secret,
            {"2026", @secret},
            [{"2026", {:key, @secret}}],
            [retired: [{"2026", {:key, @secret}}]],
            [current: @secret],
            [current: {@secret <> @secret <> "!", {:key, @secret}}],
            [current: {"with space", {:key, @secret}}],
            [current: {"2026", @secret}],
            [current: {"2026", {:key, binary_part(@secret, 0, 31)}}],
            [current: {"2026", {:key, @secret <> "x"}}],
            [current: {"2026", {:raw, @secret}}],
            [current: {"2026", {:env, :"#{@secret}"}}],
            [current: {"2026", {:key, @secret}}, retired: {"2025", {:key, @secret}}],
            [current: {"2026", {:key, @secret}}, retired: [@secret]],
            [current: {"2026", {:key, @secret}}, retired: [{"2026", {:key, @secret}}]],
            [current: {"2026", {:key, @secret}}, old: [{"2025", {:key, @secret}}]]
          ] do
        assert {:error, message} = Options.new(keys: keys)
        assert message =~ "in :keys" or message =~ "expected :keys"
        refute message =~ "0123456789"
      end

      assert {:error, message} = Options.new(@secret)
      refute message =~ @secret
    end
  end

  test "print without the keys" do
    refute inspect(Options.new!(keys: @keys)) =~ "0123"
  end

  test "keep a key given as bytes out of the child specification's print" do
    refute inspect(Kith.child_spec(keys: @keys)) =~ "0123"

    refute inspect(Kith.child_spec(keys: @keys ++ [retired: [{"old", {:key, @secret}}]])) =~
             "0123"

    %{start: {Kith, :start_link, [options]}} = Kith.child_spec(keys: @keys)
    assert Options.key_sources(Options.new!(options)) == {"2026", [{"2026", {:key, @secret}}]}
  end
end
