"""The prompts of tasks that choose among classes."""

from powerclip.tasks import PLACE, Classification, MultiLabel, Segmentation


def prompts_of(task: Classification | MultiLabel | Segmentation) -> list[str]:
    """The prompts of every name of every class, those of a name one after the other.

    ValueError if there are no names or templates, if one text is given for a list, or a template has no ``{c}``.
    """
    lists = [("class_names", task.class_names), ("templates", task.templates)]
    if isinstance(task, Segmentation):
        lists += [("class_names", names) for names in task.class_names]
    for what, texts in lists:
        if isinstance(texts, str):
            raise ValueError(f"{what} of task {task.name} has the text {texts!r}, not a list; give [{texts!r}]")
        if not len(texts):
            raise ValueError(f"{what} of task {task.name} has an empty list; give at least one text")
    for template in task.templates:
        if PLACE not in template:
            raise ValueError(f"template {template!r} of task {task.name} has no {PLACE} for the class name; add it")
    every = [[name] if isinstance(name, str) else name for name in task.class_names]
    return [template.replace(PLACE, name) for names in every for name in names for template in task.templates]
