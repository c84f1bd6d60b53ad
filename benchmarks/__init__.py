"""What this project costs, and what its peers do, measured side by side: `make bench`.

__main__       the command: which sections, how many rounds, where the tables go
model_server   a scripted model behind OpenAI's protocol, in a separate process
scenarios      what the engines are given to do, and what is read off
engines        the engines, each in its own environment; one process of each after the other
adapters/      how each engine is called, run in that engine's environment
machine        a bubblewrap machine: create, snapshot, branch, restore
server         our MCP server against a bare one of the same SDK
tables         figures, and the tables in Markdown, JSON and the README made from them
"""
