defmodule Kith.TestingTest do
  use ExUnit.Case, async: true

  import Kith.Testing

  alias Kith.{Envelope, Testing}
  alias Kith.Testing.Clock

  doctest Kith.Testing
  doctest Kith.Testing.Clock

  @text "Dinner at “seven”?\n"

  defmodule Row do
    # Shaped like a schema of Ecto.
    defstruct [:__meta__, :id, :body, :preview, :inserted_at]
  end

  defmodule Family do
    use Kith, archive: true, database: "never-made.db", one_time_prekeys: 100
  end

  defmodule Other do
    use Kith
  end

  setup do
    kith = start_kith!()
    converse!(kith, "anna", "ben")
    %{kith: kith}
  end

  defp encrypt_one!(kith, from, to, text) do
    [envelope] = Kith.encrypt!(kith, from, to, text)
    envelope
  end

  defp failure(fun), do: Exception.message(assert_raise(ExUnit.AssertionError, fun))
  defp reason({:error, %Kith.Error{reason: reason}}), do: reason

  describe "start_kith!/2" do
    test "starts instances beside each other, which know nothing of each other", %{kith: kith} do
      other = start_kith!()
      assert other != kith
      assert reason(Kith.prekey_count(other, "anna")) == :not_registered
      assert Kith.prekey_count!(kith, "anna") <= 5
    end

    test "takes the options of an instance", %{kith: _kith} do
      clock = Clock.new()
      name = start_kith!(name: {:chat, 7}, clock: clock, archive: true, one_time_prekeys: 1)
      assert name == {:chat, 7}
      converse!(name, "anna", "ben")
      assert [%{at: at} | _] = Kith.history!(name, "anna", {:direct, "ben"}).messages
      assert at == Clock.now(clock)
      assert_raise ArgumentError, ~r/unknown option :databse/, fn -> start_kith!(databse: "x") end
    end

    test "starts a module that says `use Kith`, with its own options and without its database" do
      assert start_kith!(Family) == Family
      converse!(Family, "anna", "ben")
      assert length(Family.history!("ben", {:direct, "anna"}).messages) == 3
      assert Family.prekey_count!("anna") <= 5
      refute File.exists?("never-made.db")

      message = assert_raise(ArgumentError, fn -> start_kith!(Family) end).message
      assert message =~ "Kith.TestingTest.Family runs already"
      assert message =~ "unique_user/1"
      assert_raise ArgumentError, ~r/says `use Kith`/, fn -> start_kith!(Enum) end
    end

    test "prefers what it is given to what the module says" do
      start_kith!(Other, archive: true, keys: [current: {"own", {:key, :binary.copy("k", 32)}}])
      converse!(Other, "anna", "ben")
      assert [_, _, _] = Other.history!("ben", {:direct, "anna"}).messages
    end

    test "lends a client of their own to somebody", %{kith: kith} do
      client = start_client!(kith, "olga", peers: ["anna"])
      envelope = encrypt_one!(kith, "anna", "olga", @text)
      assert_opens(client, envelope, @text)
      answer = encrypt_one!(client, "olga", "anna", @text)
      assert_opens(kith, answer, @text)
      assert reason(Kith.encrypt(kith, "olga", "anna", "hello")) == :key_not_found
    end
  end

  describe "assert_encrypted/4" do
    test "finds envelopes in whatever was stored, and leaves them to be opened", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", @text)
      binary = Envelope.to_binary(envelope)
      map = Envelope.to_map(envelope)

      for stored <- [
            envelope,
            binary,
            map,
            [envelope, map, binary],
            {:ok, %{rows: [[1, "ben", binary]]}},
            %Row{id: 1, body: binary, inserted_at: ~U[2030-01-01 12:00:00Z]},
            [Row: %Row{body: Base.encode64(binary)}],
            [Base.url_encode64(binary, padding: false)],
            "\\x" <> Base.encode16(binary, case: :lower),
            [[binary_part(binary, 0, 40)], binary_part(binary, 40, byte_size(binary) - 40)],
            [1 | binary]
          ] do
        assert assert_encrypted(kith, stored, @text) == stored
        assert assert_encrypted(kith, stored, @text, to: "ben", from: {"anna", 1}) == stored
      end

      assert Kith.decrypt!(kith, "ben", envelope) == @text
    end

    test "reads JSON where the machine has a library for it", %{kith: kith} do
      map = Envelope.to_map(encrypt_one!(kith, "anna", "ben", @text))
      pairs = Enum.map_join(map, ",", fn {key, value} -> ~s("#{key}":#{inspect(value)}) end)
      stored = [~s({"message":{#{pairs}}})]

      if Enum.any?([JSON, Jason], &Code.ensure_loaded?/1),
        do: assert(assert_encrypted(kith, stored, @text) == stored),
        else: assert(failure(fn -> assert_encrypted(kith, stored, @text) end) =~ "an envelope")
    end

    test "takes a function, and looks at what it returns, sends and logs", %{kith: kith} do
      require Logger

      assert :sent ==
               assert_encrypted(
                 kith,
                 fn ->
                   send(self(), {:deliver, encrypt_one!(kith, "anna", "ben", @text)})
                   Logger.warning("delivered")
                   :sent
                 end,
                 @text
               )

      assert_received {:deliver, %Envelope{}}

      fun = fn ->
        Logger.warning("delivers " <> @text)
        encrypt_one!(kith, "anna", "ben", @text)
      end

      assert failure(fn -> assert_encrypted(kith, fun, @text) end) =~ "at [:logged]"

      fun = fn ->
        send(self(), {:notify, @text})
        encrypt_one!(kith, "anna", "ben", @text)
      end

      assert failure(fn -> assert_encrypted(kith, fun, @text) end) =~ "at [:received][0]{1}"
    end

    test "fails for a plaintext beside its ciphertext, and does not print it", %{kith: kith} do
      row = %Row{body: encrypt_one!(kith, "anna", "ben", @text), preview: @text}
      message = failure(fn -> assert_encrypted(kith, [row], @text) end)
      assert message =~ "found it as it is at [0].preview"
      refute message =~ "seven"
    end

    test "fails for a part that must not be seen either", %{kith: kith} do
      row = %Row{body: encrypt_one!(kith, "anna", "ben", @text), preview: "Dinner…"}
      assert_encrypted(kith, row, @text)
      assert failure(fn -> assert_encrypted(kith, row, @text, hidden: "Dinner") end) =~ ".preview"
    end

    test "fails for another plaintext, and prints neither", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", "Something else")
      message = failure(fn -> assert_encrypted(kith, envelope, @text) end)
      assert message =~ "got another one of 14 bytes"
      refute message =~ "Something" or message =~ "seven"
    end

    test "fails for an envelope that does not open, and says why", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", @text)
      message = failure(fn -> assert_encrypted(kith, [envelope, corrupt(envelope)], @text) end)
      assert message =~ "got :tampered"
      Kith.decrypt!(kith, "ben", envelope)
      assert failure(fn -> assert_encrypted(kith, envelope, @text) end) =~ "got :duplicate"
    end

    test "fails where there is no envelope", %{kith: kith} do
      assert failure(fn -> assert_encrypted(kith, %{body: "nothing"}, @text) end) =~
               "expected an envelope, found none of 0"
    end

    test "fails where somebody gets none", %{kith: kith} do
      Kith.register!(kith, "cleo")
      envelopes = Kith.encrypt!(kith, "anna", "ben", @text)
      assert_encrypted(kith, envelopes, @text, to: "ben")

      assert failure(fn -> assert_encrypted(kith, envelopes, @text, to: "cleo") end) =~
               ~s(expected an envelope to "cleo", found none of 1)

      assert failure(fn -> assert_encrypted(kith, envelopes, @text, to: ["ben", "cleo"]) end) =~
               ~s(expected an envelope to "cleo")

      assert failure(fn -> assert_encrypted(kith, envelopes, @text, from: {"anna", 2}) end) =~
               ~s(from {"anna", 2})
    end

    test "opens what it is given where the rows do not show whose it is", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", @text)
      row = %{body: envelope.body}
      assert failure(fn -> assert_encrypted(kith, row, @text) end) =~ "found none of 0"
      assert assert_encrypted(kith, row, @text, envelopes: [envelope]) == row
    end

    test "refuses to roll a transaction of the application back", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", @text)

      Kith.SQLite.transaction(Kith.Instance.fetch!(kith).repo, fn ->
        assert_raise ArgumentError, ~r/outside of a transaction/, fn ->
          assert_encrypted(kith, envelope, @text)
        end
      end)
    end
  end

  describe "assert_received_encrypted/3" do
    test "takes the message out of the mailbox and leaves the others", %{kith: kith} do
      send(self(), :other)
      send(self(), {:deliver, encrypt_one!(kith, "anna", "ben", "Another text")})
      envelope = encrypt_one!(kith, "anna", "ben", @text)
      send(self(), {:deliver, envelope})

      assert assert_received_encrypted(kith, @text, to: "ben") == {:deliver, envelope}
      assert failure(fn -> assert_received_encrypted(kith, @text) end) =~ "in a mailbox of 2"
      assert_received :other
      assert_received {:deliver, %Envelope{}}
    end

    test "waits as long as it is told to", %{kith: kith} do
      test = self()
      envelope = encrypt_one!(kith, "anna", "ben", @text)
      assert failure(fn -> assert_received_encrypted(kith, @text, to: "ben") end) =~ "found none"

      spawn_link(fn ->
        Process.sleep(20)
        send(test, envelope)
      end)

      assert assert_received_encrypted(kith, @text, timeout: 60_000) == envelope
    end

    test "fails for a message that carries the plaintext as well", %{kith: kith} do
      send(self(), {encrypt_one!(kith, "anna", "ben", @text), preview: @text})
      assert failure(fn -> assert_received_encrypted(kith, @text) end) =~ "{1}[0]{1}"
    end
  end

  describe "refute_readable/2" do
    @texts [
      @text,
      "plain words",
      ~s(<b>"quoted" & more</b>),
      "naïve café 🙂",
      <<0, 255, 7, 200, 13, 77>>
    ]

    test "finds a text in every form it names" do
      for text <- @texts do
        forms = [
          text,
          "before " <> text <> " after",
          String.to_charlist(Base.encode16(text)),
          [String.slice(text, 0, 3), [String.slice(text, 3..-1//1)]],
          Base.encode16(text, case: :lower),
          for(<<byte <- text>>, do: byte),
          inspect(text, limit: :infinity),
          inspect(text, binaries: :as_binaries, limit: :infinity),
          URI.encode_www_form(text),
          URI.encode(text),
          :zlib.gzip(text),
          :zlib.compress(text),
          :erlang.term_to_binary(%{text: text}),
          :erlang.term_to_binary(String.duplicate(text, 9), compressed: 9),
          for(
            line <- Regex.scan(~r/.{1,8}/s, Base.encode64("mail: " <> text)),
            do: [line, "\r\n"]
          )
        ]

        forms =
          if is_text(text),
            do: [:unicode.characters_to_binary(text, :utf8, :utf16) | forms],
            else: forms

        encoded =
          for prefix <- ["", "1", "12", "123"],
              encode <- [&Base.encode64/1, &Base.url_encode64(&1, padding: false)],
              do: encode.(prefix <> text <> prefix)

        for {form, index} <- Enum.with_index(forms ++ encoded),
            term <- [form, %{a: [%{"b" => {1, form}}]}, %Row{body: form}, fn -> form end] do
          found? =
            try do
              refute_readable(term, text)
              false
            rescue
              ExUnit.AssertionError -> true
            end

          assert found?, "form #{index} of #{inspect(text)} in #{inspect(term)}"
        end
      end
    end

    defp is_text(text), do: String.valid?(text)

    test "finds what encoders of JSON, HTML and Base64 of JSON make of a text" do
      for {written, text} <- [
            {~S({"text":"Say \"hi\"\nnow"}), "Say \"hi\"\nnow"},
            {~S({"text":"caf\u00e9 \ud83d\ude42"}), "café 🙂"},
            {~S({"text":"a\u0001bcde"}), <<"a", 1, "bcde">>},
            {"<p>&lt;b&gt; &amp; &quot;c&quot; &#39;</p>", ~s(<b> & "c" ')},
            {Base.encode64(~S({"text":"Say \"hi\""})), ~s(Say "hi")}
          ],
          do: assert(failure(fn -> refute_readable(written, text) end) =~ "found it")
    end

    test "says where, in keys too, and never what" do
      for {term, place} <- [
            {%{rows: [%{"body" => @text}]}, ~S([:rows][0]["body"])},
            {{:ok, %Row{preview: @text}}, "{1}.preview"},
            {%{@text => 1}, "key"},
            {[:a | @text], "[1]"},
            {%{name: :"Dinner at “seven”?\n"}, "[:name]"}
          ] do
        message = failure(fn -> refute_readable(term, @text) end)
        assert message =~ "at #{place}"
        refute message =~ "seven"
      end

      # Not known when this is compiled, or it would not be captured.
      captured = Enum.random([@text])
      message = failure(fn -> refute_readable(%{job: fn -> captured end}, @text) end)
      assert message =~ "at [:job] captured[0]"
    end

    test "finds each of several texts" do
      assert refute_readable("nothing here", ["words", "phrases"]) == "nothing here"
      assert failure(fn -> refute_readable("some phrases", ["words", "phrases"]) end) =~ "7 bytes"
    end

    test "finds nothing in what is not the text" do
      for text <- @texts,
          term <- [
            :crypto.strong_rand_bytes(4_000),
            Base.encode64(:crypto.strong_rand_bytes(4_000)),
            %{self: self(), ref: make_ref(), number: 7.5, fun: &String.length/1, bits: <<3::3>>},
            ~D[2030-01-01],
            [:improper | :list],
            <<0x1F, 0x8B, 1, 2, 3>>,
            <<131, 80, 1, 2, 3>>,
            [0x110000, -1]
          ],
          do: assert(refute_readable(term, text) === term)
    end

    test "refuses a text that would be found by chance" do
      assert_raise ArgumentError, ~r/at least 5 bytes/, fn -> refute_readable("x", "four") end
      assert_raise ArgumentError, fn -> refute_readable("x", ["long enough", nil]) end
    end
  end

  describe "assert_opens/3 and refute_opens/3" do
    test "open once, as the application would", %{kith: kith} do
      envelopes =
        for n <- 1..2, do: Envelope.to_map(encrypt_one!(kith, "anna", "ben", "#{n}: same"))

      assert assert_opens(kith, hd(envelopes), "1: same") == "1: same"
      assert refute_opens(kith, hd(envelopes), :duplicate).reason == :duplicate
      assert failure(fn -> assert_opens(kith, hd(envelopes), "1: same") end) =~ "got :duplicate"
      message = failure(fn -> assert_opens(kith, tl(envelopes), "1: same") end)
      assert message =~ "another one of 7 bytes"

      assert failure(fn -> assert_opens(kith, Enum.drop(envelopes, 2), "1: same") end) =~
               "got none"
    end

    test "a refusal is of the reason that was expected, and changes nothing", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", @text)
      assert failure(fn -> refute_opens(kith, envelope) end) =~ "and it opens"
      message = failure(fn -> refute_opens(kith, corrupt(envelope), :duplicate) end)
      assert message =~ "not to open with :duplicate, got :tampered"
      assert_raise ArgumentError, fn -> refute_opens(kith, envelope, :tamperd) end
      assert_raise ArgumentError, fn -> refute_opens(kith, "no envelope") end
      assert_opens(kith, envelope, @text)
    end
  end

  describe "corrupt/2" do
    test "gives the reason it names, for messages and for those that start a session", %{
      kith: kith
    } do
      Kith.register!(kith, "cleo")
      first = encrypt_one!(kith, "cleo", "ben", @text)
      assert_opens(kith, first, @text)
      # Its session is there already, and all but the message inside is not looked at.
      repeated = encrypt_one!(kith, "cleo", "ben", @text)
      fresh = encrypt_one!(kith, "cleo", "anna", @text)
      message = encrypt_one!(kith, "anna", "ben", @text)
      assert [:prekey, :prekey, :message] == Enum.map([fresh, repeated, message], & &1.type)

      for envelope <- [fresh, repeated, message],
          {at, reason} <- [
            mac: :tampered,
            text: :tampered,
            counter: :out_of_sync,
            version: :unsupported_version,
            frame: :malformed
          ] do
        assert refute_opens(kith, corrupt(envelope, at: at), reason)
        assert corrupt(envelope, at: at) == corrupt(envelope, at: at)
      end

      for envelope <- [fresh, repeated, message] do
        refute_opens(kith, corrupt(envelope), :tampered)
        assert_opens(kith, envelope, @text)
      end
    end

    test "keeps the form, changes a byte where it is told to, and all of a list", %{kith: kith} do
      envelope = encrypt_one!(kith, "anna", "ben", @text)
      changed = corrupt(envelope)
      assert %{changed | body: nil} == %{envelope | body: nil}
      assert corrupt(Envelope.to_binary(envelope)) == Envelope.to_binary(changed)
      assert corrupt(Envelope.to_map(envelope)) == Envelope.to_map(changed)
      assert corrupt([envelope, envelope]) == [changed, changed]
      assert corrupt(changed) == envelope
      assert corrupt(envelope, at: -1) == changed
      assert corrupt(envelope, at: 0).body != envelope.body
      size = byte_size(envelope.body)
      assert corrupt(envelope, at: size - 1) == changed

      for at <- [size, -size - 1, :nowhere],
          do: assert_raise(ArgumentError, fn -> corrupt(envelope, at: at) end)
    end

    test "has one place in notes and reports", %{kith: kith} do
      note = encrypt_one!(kith, "anna", "anna", "a note to myself")
      refute_opens(kith, corrupt(note), :corrupted_state)
      assert_raise ArgumentError, ~r/a place of a :self/, fn -> corrupt(note, at: :counter) end
      assert_opens(kith, note, "a note to myself")
    end
  end

  describe "the network" do
    test "does to a list what its seed says" do
      list = Enum.to_list(1..20)
      assert reorder(list, 1) == reorder(list, 1)
      assert reorder(list, 1) != reorder(list, 2)
      for seed <- 1..50, do: assert(reorder([1, 2, 3], seed) != [1, 2, 3])
      assert reorder([], 1) == [] and reorder([7], 1) == [7] and reorder([7, 7], 1) == [7, 7]
      assert drop(list, 5, 1) == drop(list, 5, 1)
      assert length(drop(list, 5, 1)) == 15 and drop(list, 5, 1) == Enum.sort(drop(list, 5, 1))
      assert drop([], 3, 1) == [] and drop(list, 0, 1) == list
    end

    test "delivers in any order", %{kith: kith} do
      envelopes = for n <- 1..4, do: encrypt_one!(kith, "anna", "ben", "#{n}")
      [_, second, third, fourth] = envelopes

      assert [{^fourth, {:ok, "4"}}, {^second, {:ok, "2"}}, {^fourth, {:error, error}}] =
               deliver_all(kith, envelopes, [3, 1, 3])

      assert error.reason == :duplicate

      assert [{_, {:ok, "3"}}, {_, {:ok, "1"}}] =
               deliver_all(kith, [hd(envelopes), third], :reversed)

      for bad <- [[4], [-1], [:a], :sideways],
          do: assert_raise(ArgumentError, fn -> deliver_all(kith, envelopes, bad) end)
    end

    test "opens all that comes in any order, and nothing twice", %{kith: kith} do
      envelopes = for n <- 1..9, do: encrypt_one!(kith, "anna", "ben", "#{n}")
      results = deliver_all(kith, duplicate(drop(envelopes, 2, 3)), {:seed, 11})
      opened = for {_, {:ok, text}} <- results, do: text
      assert length(opened) == 7 and opened == Enum.uniq(opened)
      assert Enum.count(results, &match?({_, {:error, %{reason: :duplicate}}}, &1)) == 7
    end

    test "delivers to a function of the application", %{kith: kith} do
      envelopes = for n <- 1..2, do: encrypt_one!(kith, "anna", "ben", "#{n}")
      received = deliver_all(&{:seen, Kith.decrypt!(kith, "ben", &1)}, envelopes, :reversed)
      assert Enum.map(received, &elem(&1, 1)) == [seen: "2", seen: "1"]
    end
  end

  describe "errors" do
    @describetag :capture_log

    # The table of the documentation, row by row.
    {:docs_v1, _, _, _, %{"en" => moduledoc}, _, _} = Code.fetch_docs(Kith.Testing)

    @rows Regex.scan(~r/^\| `:(\w+)` \| `(.+)` \|$/m, moduledoc, capture: :all_but_first)

    test "each an application should handle is in the table" do
      named = for [reason, _] <- @rows, do: String.to_existing_atom(reason)
      # Of the account's own lock, and of bugs.
      # No message is answered with what is of passwords and of backups; a key service is no part of a test.
      elsewhere = [
        :already_registered,
        :busy,
        :no_consent,
        :too_few,
        :unavailable,
        :wrong_password,
        :wrong_secret
      ]

      assert Enum.sort(Kith.Error.reasons() -- named) == Enum.sort([:locked, :panic | elsewhere])
    end

    for [reason, code] <- @rows do
      test "#{reason} is what #{code} gives", %{kith: kith} do
        Kith.register!(kith, "cleo")
        envelope = encrypt_one!(kith, "anna", "ben", "hello")
        first = encrypt_one!(kith, "cleo", "ben", "hello")
        imports = "import Kith.Testing; "
        binding = [kith: kith, envelope: envelope, first: first]
        {result, _} = Code.eval_string(imports <> unquote(code), binding, __ENV__)

        error =
          case result do
            {:error, error} -> error
            [{_, {:ok, "hello"}}, {_, {:error, error}}] -> error
          end

        assert error.reason == unquote(String.to_atom(reason))
      end
    end

    test "of storage and of other writers end with the function, and nothing was changed", %{
      kith: kith
    } do
      for broken <- [&while_storage_fails/2, &while_contended/2] do
        assert {:error, _} = broken.(kith, fn -> Kith.encrypt(kith, "anna", "ben", "hello") end)
        assert_raise RuntimeError, fn -> broken.(kith, fn -> raise "in the middle" end) end
        assert_opens(kith, encrypt_one!(kith, "anna", "ben", @text), @text)
      end
    end

    test "of a session heal", %{kith: kith} do
      for break <- [&lose_session!/3, &corrupt_session!/3] do
        envelope = encrypt_one!(kith, "anna", "ben", "hello")
        assert break.(kith, "ben", "anna") == :ok
        {:error, error} = Kith.decrypt(kith, "ben", envelope)
        [report] = Kith.recover!(kith, "ben", envelope, error)
        assert %{renewed: true} = Kith.resend!(kith, "anna", report)
        assert_opens(kith, encrypt_one!(kith, "anna", "ben", @text), @text)
      end

      assert_raise Kith.Error, fn -> lose_session!(kith, "ben", "nobody") end
      assert_raise Kith.Error, fn -> corrupt_session!(kith, "ben", "nobody") end
    end

    test "of an identity are the people's to heal", %{kith: kith} do
      before = Kith.register!(kith, {"anna", 2}).identity_key
      assert [one, two] = change_identity!(kith, "anna")
      assert {one.device, two.device} == {1, 2}
      assert one.identity_key == two.identity_key and one.identity_key != before
      assert Kith.trust!(kith, "ben", "anna") == :trusted
      assert [_, _] = Kith.encrypt!(kith, "ben", "anna", "hello")
      assert_raise Kith.Error, fn -> change_identity!(kith, "nobody") end
    end
  end

  describe "restore_backup!/3" do
    @describetag :capture_log

    test "puts one side back, and the other notices", %{kith: kith} do
      backup = Testing.backup(kith)
      used = for n <- 1..3, do: encrypt_one!(kith, "anna", "ben", "#{n}")
      for envelope <- used, do: Kith.decrypt!(kith, "ben", envelope)

      assert restore_backup!(kith, backup, user: "anna") == :ok
      refute_opens(kith, encrypt_one!(kith, "anna", "ben", "new"), :duplicate)
      # More than once, and with what Kith does where it knows.
      restore_backup!(kith, backup, user: "anna")
      assert Kith.restored!(kith).sessions > 0
      assert_opens(kith, encrypt_one!(kith, "anna", "ben", @text), @text)
    end

    test "puts all back", %{kith: kith} do
      backup = Testing.backup(kith)
      envelope = encrypt_one!(kith, "anna", "ben", @text)
      Kith.register!(kith, "dora")
      assert_opens(kith, envelope, @text)
      restore_backup!(kith, backup)
      assert reason(Kith.prekey_count(kith, "dora")) == :not_registered
      assert_opens(kith, envelope, @text)
    end
  end

  describe "a clock" do
    test "drives the retention of the archive and :expires_in" do
      clock = Clock.new()
      kith = start_kith!(clock: clock, archive: [retention: 3_600])
      converse!(kith, "anna", "ben")
      Kith.encrypt!(kith, "anna", "ben", "short", expires_in: 60)

      texts = fn ->
        for m <- Kith.history!(kith, "anna", {:direct, "ben"}).messages, do: m.plaintext
      end

      assert texts.() == ["hello", "hello", "hello", "short"]
      Clock.advance(clock, 61)
      assert texts.() == ["hello", "hello", "hello"]
      Clock.advance(clock, 1, :hour)
      assert texts.() == []
      assert %{messages: 7} = Kith.maintain!(kith)
    end

    test "drives the life of prekeys and sessions" do
      clock = Clock.new()
      kith = start_kith!(clock: clock)
      converse!(kith, "anna", "ben")
      assert %{rotated: 0} = Kith.maintain!(kith)
      Clock.advance(clock, 8, :day)
      assert %{rotated: 2} = Kith.maintain!(kith)
      assert encrypt_one!(kith, "anna", "ben", "hello").type == :message
      # :refresh_after
      Clock.advance(clock, 31, :day)
      assert encrypt_one!(kith, "anna", "ben", "hello").type == :prekey
    end

    test "is set back, and refuses what is no time" do
      clock = Clock.new(1_000)
      assert Clock.now(Clock.advance(clock, 1, :day)) == 86_401_000
      assert Clock.now(Clock.set(clock, 5)) == 5
      assert inspect(clock) == "#Kith.Testing.Clock<1970-01-01 00:00:00.005Z>"
      assert_raise ArgumentError, fn -> Clock.advance(clock, -1) end

      assert_raise ArgumentError, ~r/one of :millisecond/, fn ->
        Clock.advance(clock, 1, :year)
      end

      for moment <- [0, -5, 1.5, "now"],
          do: assert_raise(ArgumentError, fn -> Clock.new(moment) end)
    end
  end
end
