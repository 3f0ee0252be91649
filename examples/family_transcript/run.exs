# Replays a conversation through Kith. Run it with `make demo`; README.md says what it shows.

for file <-
      ~w(failure transcript json official without_database search progress conversation report),
    do: Code.require_file("lib/#{file}.ex", __DIR__)

defmodule FamilyTranscript.Kith do
  @moduledoc false
  use Kith
end

defmodule FamilyTranscript do
  @moduledoc false

  alias FamilyTranscript.{Conversation, Failure, Official, Progress, Report, Search, Transcript}
  alias FamilyTranscript.Kith, as: Engine

  @sample Path.join(__DIR__, "transcript.txt")

  def main(arguments) do
    # The engine is stopped and started on purpose; what it says about that is no news here.
    Logger.configure(level: :error)

    with {:ok, options} <- options(arguments),
         {:ok, lines, people} <- Transcript.read(options.transcript) do
      in_directory(&replay(&1, lines, people, options))
    else
      {:error, message} -> stop(message)
    end
  rescue
    failure in Failure -> stop("\nThe demo failed: " <> failure.message)
  end

  defp stop(message) do
    IO.puts(:stderr, message)
    System.halt(1)
  end

  defp options(arguments) do
    case OptionParser.parse(arguments, strict: [peer: :string, seed: :integer]) do
      {given, paths, []} when length(paths) < 2 ->
        peer = given[:peer] || ""

        if peer in ["", "official"],
          do:
            {:ok,
             %{
               official?: peer == "official",
               seed: given[:seed] || 1,
               transcript: List.first(paths) || @sample
             }},
          else: {:error, "PEER=#{peer}: the only other client is PEER=official"}

      _ ->
        {:error, "expected at most --peer official, --seed number and the path of a transcript"}
    end
  end

  # On the same disk as the project, so that the figures are of a disk. What a run that was killed left
  # behind goes with the next one.
  defp in_directory(fun) do
    for old <- Path.wildcard(Path.expand("../../tmp/family_transcript-*", __DIR__)),
        [_, pid] = Regex.run(~r/-(\d+)$/, old),
        not alive?(pid),
        do: File.rm_rf!(old)

    directory = Path.expand("../../tmp/family_transcript-#{System.pid()}", __DIR__)
    File.mkdir_p!(directory)
    File.chmod!(directory, 0o700)

    try do
      fun.(directory)
    after
      File.rm_rf!(directory)
    end
  end

  defp alive?(pid), do: match?({_, 0}, System.cmd("sh", ["-c", "kill -0 #{pid} 2>&1"]))

  defp replay(directory, lines, people, options) do
    database = Path.join(directory, "kith.db")
    key_file = Path.join(directory, "kith.key")
    make_key(key_file)

    supervisor = start(database, key_file)
    {local, official} = join(people, options)
    identities = register(local)
    IO.puts(opening(lines, people, official))

    texts = Enum.map(lines, & &1.text)

    search =
      Search.new(directory, database, texts, Base.decode64!(String.trim(File.read!(key_file))))

    # The absences are the same in every run with the same seed.
    :rand.seed(:exsss, options.seed)
    {before, rest} = Enum.split(lines, div(length(lines), 2))
    progress = Progress.new(length(lines))
    conversation = Conversation.new(Engine, people, official)
    {conversation, progress} = say(before, conversation, progress)

    stop_engine(supervisor)
    supervisor = start(database, key_file)
    if register(local) != identities, do: raise(Failure, "identities changed with the restart")
    Progress.say(progress, "half-way: the engine was stopped, and started again from disk")

    {conversation, _progress} = say(rest, conversation, progress)
    conversation = Conversation.everyone_back(conversation)
    Conversation.verify!(conversation, lines)
    prekeys = Enum.map(local, &Engine.prekey_count!/1)
    relayed = if official, do: Engine.prekey_count!(official.name)

    # While it runs there is a write-ahead log; when it has stopped there is only the file.
    Search.prove!(search)
    {searched, needles} = search!(search)
    stop_engine(supervisor)
    search!(search)
    if official, do: Official.stop(official)

    IO.puts("")

    Report.print(conversation, lines, %{
      prekeys: prekeys,
      relayed: relayed,
      searched: searched,
      texts: needles,
      seed: options.seed
    })
  end

  defp make_key(path) do
    shell = Mix.shell()
    Mix.shell(Mix.Shell.Quiet)
    Mix.Task.run("kith.gen.key", ["--file", path])
    Mix.shell(shell)
  end

  # Both, so that nothing survives in the memory of this VM but the code.
  defp start(database, key_file) do
    {:ok, _} = Application.ensure_all_started(:kith)

    {:ok, supervisor} =
      Engine.start_link(database: database, keys: [current: {"demo", {:file, key_file}}])

    supervisor
  end

  defp stop_engine(supervisor) do
    :ok = Supervisor.stop(supervisor)
    :ok = Application.stop(:kith)
  end

  defp join(people, %{official?: false}), do: {people, nil}

  defp join(people, %{official?: true}) do
    {local, [name]} = Enum.split(people, -1)
    official = Official.start(name)
    published = Engine.publish_bundle!(name, Official.bundle(official, length(people)))
    {local, %{official | published: published}}
  end

  defp register(people), do: Map.new(people, &{&1, Engine.register!(&1).identity_key})

  defp opening(lines, people, official) do
    list = Enum.join(Enum.drop(people, -1), ", ") <> " and " <> List.last(people)

    client =
      if official, do: " #{official.name} uses the official client #{official.about}.", else: ""

    "#{length(lines)} messages among #{list}.#{client}"
  end

  defp say(lines, conversation, progress) do
    Enum.reduce(lines, {conversation, progress}, fn line, {conversation, progress} ->
      conversation = Conversation.say(conversation, line)
      {conversation, Progress.show(progress, line.number, Conversation.away(conversation))}
    end)
  end

  defp search!(search) do
    case Search.found(search) do
      [] -> Search.extent(search)
      found -> raise Failure, "#{length(found)} texts or keys are in the database in clear"
    end
  end
end

FamilyTranscript.main(System.argv())
