"""`python -m example_project`: the whole project once, in a real Dagster."""

from example_project.demo.command import main

if __name__ == "__main__":
    main()
